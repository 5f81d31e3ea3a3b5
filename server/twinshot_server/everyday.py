"""Words that carry no picture of their own, or say where things stand: every model copes with them."""

from __future__ import annotations

_ENGLISH = """
a an the and or of with without in on at to from by for left right above below over beneath underneath under
next beside between behind front against top bottom side inside outside near is are be that which where shows
showing shown show see there here some one two three four 1 2 3 4 pair photo photograph picture image
drawing draw drawn paint painting illustration render rendering rendered scene background backdrop wall place
please me my i you we it its this would could can like want have has give make create asked so small
little big large tiny huge color colour colored coloured colorful colourful simple clean bright beautiful nice
friendly pretty cute lovely soft light shadow shadows lot lots detail details detailed high quality 3d style
shiny sharp keep nothing else very thank thanks much smooth shading centered centred best possible daughter
"""
_CHINESE = """
一 两 二 三 四 几 个 只 条 头 匹 辆 列 架 枚 艘 根 颗 朵 棵 块 份 串 桶 团 把 张 盆 本 台 部 支 座 顶 件
副 道 片 扇 面 节 盏 双 些 的 色 在 和 与 跟 及 有 是 上 下 里 中 前 后 旁 左 右 上面 下面 左面 右面 前面 后面
左边 右边 旁边 上方 下方 左侧 右侧 位于 画 请 请画 给我看 帮我 我 想要 想 要 你 它 里面 背景 背景上
背景前 墙 墙壁 墙壁前 图片 照片 图 插图 颜色 大 小 漂亮 干净 明亮 柔和 光线 鲜艳 高质量 细节 丰富
简单 谢谢 可爱
"""

ENGLISH = frozenset([*_ENGLISH.split(), "shiny toy"])
"""English words and phrases, in lower case."""

CHINESE = frozenset(_CHINESE.split())
"""Chinese words, and the measure words that things are counted with."""
