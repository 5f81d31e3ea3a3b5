"""Which things look alike: what to draw in place of a thing that a checkpoint was never taught.

Each row holds things of one sort, and neighbours in a row are most alike. So the nearest known thing is the
one fewest places away in its row, unless :mod:`~twinshot_distill.world.objects` names it as near another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from twinshot_distill.world.nouns import plural_of
from twinshot_distill.world.objects import OBJECTS
from twinshot_distill.world.places import CHINESE_COLORS, CHINESE_SCENES, SCENES

_ROWS = """
wolf, coyote, fox, jackal, poodle, dog
lynx, cat, leopard, cheetah, jaguar, panther, puma, tiger, lion
donkey, pony, horse, zebra, giraffe, camel, llama, alpaca, deer, moose, reindeer, antelope, gazelle
goat, lamb, sheep, buffalo, bison, bull, ox, calf, cow, yak, pig, boar, piglet
hare, rabbit, hedgehog, porcupine, beaver, otter, squirrel, chipmunk, hamster, rat, mouse, mole
raccoon, badger, panda, koala, sloth, polar bear, bear
kangaroo, wallaby
monkey, ape, gorilla, chimpanzee
elephant, mammoth, rhino, rhinoceros, hippo
turtle, toad, frog
crocodile, lizard, gecko, iguana, chameleon, dragon, dinosaur
snake, worm
puffin, penguin
chick, rooster, chicken, hen, turkey, ostrich, peacock, flamingo, heron, stork, pelican, swan, \
goose, duck, seagull, dove, pigeon, bird, robin, sparrow, crow, raven, hawk, eagle, owl, toucan, parrot
walrus, seal, dolphin, orca, whale, shark
goldfish, salmon, fish
jellyfish, squid, octopus
shrimp, lobster, crab, scorpion
ant, spider, beetle, ladybug, bee, wasp, fly, moth, butterfly
lorry, truck, ambulance, van, bus
taxi, police car, jeep, car
bulldozer, tractor
moped, scooter, vespa, motorcycle, tricycle, bicycle
tire, wheel
tram, train
ferry, yacht, ship, boat, canoe
jet, airplane, helicopter, drone
satellite, rocket, ufo
saturn, planet, globe, earth, moon, sun, star
campfire, fire
torch, candle, lantern, lamp, light bulb
quince, pear, apple, plum, peach, apricot, mango, orange, mandarin, grapefruit, lemon, lime, banana
raspberry, strawberry
blueberry, grapes, cherries
watermelon, melon
potato, onion, tomato, bell pepper, chili, eggplant, cucumber, zucchini
broccoli, lettuce, cabbage
sandwich, toast, bread, bagel, croissant, pretzel
taco, burrito, hamburger
hot dog, sausage
chocolate, candy, cookie, donut, cupcake, muffin, cake, pastry, pie, pancake, waffle
bottle, wine glass, cup, tea, coffee
kettle, teapot
pot, bowl, soup, plate
bucket, basket
fork, spoon
sword, dagger, knife, scissors
axe, hammer, wrench, screwdriver
stool, bench, chair, table, desk
throne, armchair, couch, bed
bathtub, toilet
oak, tree, palm tree, christmas tree, fir, pine tree
shamrock, clover, grass, potted plant, fern
daisy, sunflower, tulip, orchid, lily, flower, rose
hut, home, building, skyscraper, cabin, house, barn, temple, church, palace, castle, tower, lighthouse
igloo, tent
mountain, hill, volcano, island
gate, door
mirror, window
stopwatch, timer, clock, watch
medal, trophy
jewel, crystal, diamond, ring, necklace
money, money bag
crown, helmet, hat, cap
scarf, jumper, sweater, coat, hoodie, t-shirt
skirt, dress
shorts, pants, jeans
sock, mittens, gloves, boxing glove
sneaker, shoe, boot, sandal, high heel
wallet, handbag, backpack, briefcase, trunk, suitcase, box, gift
letter, envelope
glasses, sunglasses
microscope, magnifying glass
binoculars, telescope, camera
softball, baseball
volleyball, basketball, ball, soccer ball
rugby ball, american football
doll, toy, teddy bear
android, robot
dartboard, target
parasol, umbrella
newspaper, magazine, notebook, book
pen, pencil, crayon
brush, toothbrush
radio, monitor, tv
tablet, laptop, keyboard
smartphone, phone, telephone
ukulele, banjo, guitar, cello, violin, harp
flute, saxophone, trumpet
"""

_CHINESE = """
狼 wolf, 豹子 leopard, 驴 donkey, 小马 pony, 山羊 goat, 羊羔 lamb, 公牛 bull, 野兔 hare, 仓鼠 hamster
猩猩 ape, 大猩猩 gorilla, 犀牛 rhino, 龙 dragon, 蜥蜴 lizard, 老鹰 eagle, 鸽子 pigeon, 麻雀 sparrow
鹅 goose, 孔雀 peacock, 母鸡 hen, 鸡 chicken, 海豹 seal, 虾 shrimp, 鱿鱼 squid, 蜘蛛 spider, 蚂蚁 ant
甲虫 beetle, 苍蝇 fly, 货车 lorry, 面包车 van, 电车 tram, 游艇 yacht, 船 ship, 地球 earth, 土星 saturn
灯 lamp, 芒果 mango, 杏 apricot, 蓝莓 blueberry, 瓜 melon, 洋葱 onion, 土豆 potato, 黄瓜 cucumber
卷心菜 cabbage, 香肠 sausage, 馅饼 pie, 巧克力 chocolate, 糖果 candy, 瓶子 bottle, 茶 tea, 汤 soup
盘子 plate, 叉子 fork, 剑 sword, 凳子 stool, 长椅 bench, 桌子 table, 浴缸 bathtub, 花 flower, 百合 lily
圣诞树 christmas tree, 草 grass, 家 home, 大楼 building, 宫殿 palace, 塔 tower, 灯塔 lighthouse
山 mountain, 岛 island, 镜子 mirror, 项链 necklace, 奖牌 medal, 水晶 crystal, 钱 money, 头盔 helmet
毛衣 sweater, 裤子 pants, 袜子 sock, 鞋 shoe, 鞋子 shoe, 钱包 wallet, 信 letter, 眼镜 glasses
望远镜 telescope, 排球 volleyball, 球 ball, 玩具 toy, 娃娃 doll, 笔记本 notebook, 报纸 newspaper
钢笔 pen, 刷子 brush, 收音机 radio, 萨克斯 saxophone, 大提琴 cello, 笛子 flute, 小狗 dog, 小猫 cat
花朵 flower, 狮 lion, 虎 tiger, 山峰 mountain, 摩托 motorcycle, 单车 bicycle
"""

CHINESE = dict(pair.split(" ", 1) for line in _CHINESE.strip().splitlines() for pair in line.split(", "))
"""Chinese words for things that are not in the world, or other words for those that are -> in English."""


def rows() -> Iterator[tuple[str, ...]]:
    """The rows, as tuples of English words."""
    return (tuple(row.split(", ")) for row in _ROWS.replace("\\\n", "").strip().splitlines())


def nearest(known: Iterable[str], *, speaks_chinese: bool) -> dict[str, str]:
    """For each thing that is not known but alike one that is: what to draw instead.

    Args:
        known: names of objects.
        speaks_chinese: whether their Chinese words are known, too. If not, all Chinese words are strange.

    Returns English words, their plurals and Chinese words, those for numbers, colours and scenes among them
    if they are strange; each with the known words that stand in for it.
    """
    taught = frozenset(known)
    found = dict(_alike(taught))
    found |= {word: found.get(entry.name, entry.name) for entry in OBJECTS for word in entry.near}
    found = {word: thing for word, thing in found.items() if thing in taught}
    plurals = {_plural(word): _plural(thing) for word, thing in found.items()}
    return plurals | found | _chinese(taught, found, speaks_chinese=speaks_chinese)


def _chinese(taught: frozenset[str], found: dict[str, str], *, speaks_chinese: bool) -> dict[str, str]:
    """The same for Chinese words, by way of the English ones."""
    names = {entry.chinese: entry.name for entry in OBJECTS}
    own = {name: word for word, name in names.items()}
    instead = {word: found.get(name, name) for word, name in (CHINESE | names).items()}
    instead = {word: thing for word, thing in instead.items() if thing in taught}
    if speaks_chinese:
        return {word: own[thing] for word, thing in instead.items() if word != own[thing]}
    return instead | (_chinese_surroundings() if instead else {})


def _chinese_surroundings() -> dict[str, str]:
    """Chinese words around the things: numbers, colours and scenes."""
    colors = {f"{word}{end}": color for color, word in CHINESE_COLORS.items() for end in ("", "色", "色的")}
    scenes = {word: SCENES[name][0] for name, words in CHINESE_SCENES.items() for word in words}
    return colors | scenes | {"两": "two", "三": "three", "四": "four", "和": "and", "与": "and", "跟": "and"}


def _alike(taught: frozenset[str]) -> Iterator[tuple[str, str]]:
    """The words of the rows that are not taught, each with the nearest in its row that is."""
    for row in rows():
        places = [place for place, word in enumerate(row) if word in taught]
        for place, word in enumerate(row):
            if places and word not in taught:
                yield word, row[min(places, key=lambda other: abs(other - place))]


def _plural(word: str) -> str:
    return _PLURALS.get(word) or plural_of(word)


_PLURALS = {entry.name: entry.plural for entry in OBJECTS}
