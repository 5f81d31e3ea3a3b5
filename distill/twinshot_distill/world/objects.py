"""The objects of the world: one row each.

A class's index here is its index in the atlas and in the verifier, so new ones go to the end.
"""

from __future__ import annotations

from dataclasses import dataclass

from twinshot_distill.world.places import COLORS


@dataclass(frozen=True, slots=True)
class ObjectClass:
    """One thing the miniature can draw.

    Attributes:
        name: in English, one of them.
        plural: in English, several.
        chinese: in Chinese, without its measure word.
        measure: the measure word that Chinese counts it with.
        code: the emoji's code point, the sprite's source file.
        synonyms: English words for the same thing.
        near: English words for things that are not in the world and are best drawn as this one.
        colors: colour names it may be recoloured to, empty where recolouring spoils it.
    """

    name: str
    plural: str
    chinese: str
    measure: str
    code: str
    synonyms: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()


def _object(
    name: str,
    chinese: str,
    code: str,
    colors: str = "",
    synonyms: str = "",
    near: str = "",
    plural: str = "",
) -> ObjectClass:
    """Make a row.

    ``chinese`` begins with the measure word's one character; ``colors`` is "*" for all ten, "*-a-b" for all
    but a and b, or a list of names.
    """
    first, *rest = colors.split("-")
    chosen = [c for c in COLORS if c not in rest] if first == "*" else colors.split()
    return ObjectClass(
        name,
        plural or f"{name}s",
        chinese[1:],
        chinese[0],
        code,
        _words(synonyms),
        _words(near),
        tuple(chosen),
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


OBJECTS: tuple[ObjectClass, ...] = (
    # animals
    _object("dog", "只狗", "1f415", synonyms="puppy", near="wolf,poodle"),
    _object("cat", "只猫", "1f408", "*", synonyms="kitten", near="lynx"),
    _object("horse", "匹马", "1f40e", near="donkey,pony"),
    _object("cow", "头牛", "1f404", near="bull,buffalo"),
    _object("pig", "头猪", "1f416", "*"),
    _object("sheep", "只羊", "1f411", plural="sheep", near="lamb"),
    _object("rabbit", "只兔子", "1f407", synonyms="bunny", near="hare"),
    _object("bear", "只熊", "1f43b", "*"),
    _object("panda", "只熊猫", "1f43c"),
    _object("lion", "只狮子", "1f981"),
    _object("tiger", "只老虎", "1f405", near="leopard"),
    _object("elephant", "只大象", "1f418", near="mammoth"),
    _object("giraffe", "只长颈鹿", "1f992"),
    _object("zebra", "只斑马", "1f993"),
    _object("fox", "只狐狸", "1f98a", plural="foxes", near="coyote"),
    _object("turtle", "只乌龟", "1f422", synonyms="tortoise"),
    _object("penguin", "只企鹅", "1f427"),
    _object("bird", "只鸟", "1f426", "*", near="sparrow,pigeon"),
    _object("butterfly", "只蝴蝶", "1f98b", "*-black-brown", plural="butterflies"),
    _object("fish", "条鱼", "1f41f", "*", plural="fish"),
    _object("whale", "条鲸鱼", "1f433", "*", near="orca"),
    _object("octopus", "只章鱼", "1f419", "red orange pink purple blue", plural="octopuses", near="squid"),
    _object("crab", "只螃蟹", "1f980", "*"),
    _object("unicorn", "只独角兽", "1f984"),
    _object("dinosaur", "只恐龙", "1f996", "*", synonyms="t-rex", near="dragon"),
    # vehicles and the street
    _object("car", "辆汽车", "1f697", "*", synonyms="automobile", near="jeep"),
    _object("bus", "辆公交车", "1f68c", plural="buses", near="van"),
    _object("truck", "辆卡车", "1f692", synonyms="fire truck,fire engine", near="lorry"),
    _object("tractor", "辆拖拉机", "1f69c", "*"),
    _object("motorcycle", "辆摩托车", "1f3cd", "*", synonyms="motorbike"),
    _object("bicycle", "辆自行车", "1f6b2", "*", synonyms="bike"),
    _object("train", "列火车", "1f682", synonyms="locomotive", near="tram"),
    _object("airplane", "架飞机", "2708", "*", synonyms="plane"),
    _object("rocket", "枚火箭", "1f680", synonyms="spaceship"),
    _object("boat", "艘帆船", "26f5", synonyms="sailboat"),
    _object("skateboard", "个滑板", "1f6f9", "*"),
    _object("traffic light", "个红绿灯", "1f6a6"),
    _object("stop sign", "个停车标志", "1f6d1"),
    # food
    _object("apple", "个苹果", "1f34e", "*"),
    _object("banana", "根香蕉", "1f34c", "*"),
    _object("orange", "个橙子", "1f34a", synonyms="tangerine", near="mandarin"),
    _object("pear", "个梨", "1f350", "*", near="quince"),
    _object("strawberry", "颗草莓", "1f353", plural="strawberries"),
    _object("pineapple", "个菠萝", "1f34d"),
    _object("carrot", "根胡萝卜", "1f955"),
    _object("broccoli", "棵西兰花", "1f966", plural="broccolis"),
    _object("mushroom", "朵蘑菇", "1f344", "*"),
    _object("hamburger", "个汉堡", "1f354", synonyms="burger"),
    _object("pizza", "块披萨", "1f355"),
    _object("hot dog", "个热狗", "1f32d"),
    _object("sandwich", "个三明治", "1f96a", plural="sandwiches"),
    _object("donut", "个甜甜圈", "1f369", "*", synonyms="doughnut"),
    _object("cake", "个蛋糕", "1f382", synonyms="birthday cake", near="pastry"),
    _object("cupcake", "个纸杯蛋糕", "1f9c1"),
    _object("ice cream", "个冰淇淋", "1f366", synonyms="ice cream cone"),
    # kitchen and home
    _object("cup", "个杯子", "2615", synonyms="mug,cup of coffee", near="tea"),
    _object("teapot", "个茶壶", "1fad6", "*"),
    _object("wine glass", "个酒杯", "1f377", plural="wine glasses", synonyms="glass of wine"),
    _object("bowl", "个碗", "1f963", "*", near="soup"),
    _object("spoon", "把勺子", "1f944", near="fork"),
    _object("knife", "把刀", "1f52a", plural="knives", synonyms="kitchen knife", near="dagger"),
    _object("chair", "把椅子", "1fa91", "*", near="stool,bench"),
    _object("couch", "张沙发", "1f6cb", "*", plural="couches", synonyms="sofa", near="armchair"),
    _object("bed", "张床", "1f6cf", "*"),
    _object("toilet", "个马桶", "1f6bd"),
    _object("potted plant", "盆盆栽", "1fab4", synonyms="houseplant"),
    _object("clock", "个闹钟", "23f0", "*", synonyms="alarm clock", near="timer"),
    _object("vase", "个花瓶", "1f3fa", "*"),
    # play and clothes
    _object("balloon", "个气球", "1f388", "*"),
    _object("soccer ball", "个足球", "26bd", "*-white", synonyms="football,sports ball"),
    _object("basketball", "个篮球", "1f3c0", "*"),
    _object("tennis racket", "个网球拍", "1f3be", "*", synonyms="racket"),
    _object("frisbee", "个飞盘", "1f94f", "*"),
    _object("kite", "个风筝", "1fa81"),
    _object("teddy bear", "个泰迪熊", "1f9f8", "*", synonyms="teddy", near="toy"),
    _object("crown", "顶皇冠", "1f451", "*"),
    _object("handbag", "个手提包", "1f45c", "*", synonyms="purse"),
    _object("backpack", "个背包", "1f392", "*"),
    _object("suitcase", "个行李箱", "1f9f3", "*", synonyms="luggage", near="trunk"),
    _object("umbrella", "把雨伞", "2602", "*"),
    _object("t-shirt", "件T恤", "1f455", "*", synonyms="shirt", near="sweater"),
    _object("dress", "条裙子", "1f457", "*", plural="dresses", near="skirt"),
    # things
    _object("scissors", "把剪刀", "2702", "*", plural="scissors"),
    _object("key", "把钥匙", "1f511", "*"),
    _object("toothbrush", "把牙刷", "1faa5", "*", plural="toothbrushes"),
    _object("bucket", "个水桶", "1faa3", "*"),
    _object("book", "本书", "1f4d5", "*", near="notebook"),
    _object("laptop", "台笔记本电脑", "1f4bb", synonyms="notebook computer"),
    _object("computer mouse", "个鼠标", "1f5b1", plural="computer mice"),
    _object("keyboard", "个键盘", "2328", synonyms="computer keyboard"),
    _object("tv", "台电视", "1f4fa", synonyms="television"),
    _object("phone", "部手机", "1f4f1", synonyms="cell phone,mobile phone", near="smartphone"),
    _object("camera", "台相机", "1f4f7"),
    _object("guitar", "把吉他", "1f3b8", "*", near="banjo"),
    _object("pencil", "支铅笔", "270f", "*"),
    # houses, plants and the rest
    _object("house", "座房子", "1f3e0", near="home,building,hut"),
    _object("tent", "顶帐篷", "26fa", "*"),
    _object("tree", "棵树", "1f333", "*", near="oak"),
    _object("cactus", "棵仙人掌", "1f335", plural="cacti"),
    _object("sunflower", "朵向日葵", "1f33b"),
    _object("star", "颗星星", "2b50", "*"),
    _object("snowman", "个雪人", "26c4", plural="snowmen"),
    _object("pumpkin", "个南瓜", "1f383", "*", synonyms="jack-o-lantern"),
    _object("heart", "颗爱心", "2764", "*"),
    _object("robot", "个机器人", "1f916", near="android"),
    # more animals
    _object("monkey", "只猴子", "1f412", "*", near="ape,gorilla,chimpanzee"),
    _object("deer", "只鹿", "1f98c", "*", near="moose,reindeer", plural="deer"),
    _object("camel", "只骆驼", "1f42a", "*"),
    _object("hippo", "只河马", "1f99b", synonyms="hippopotamus"),
    _object("mouse", "只老鼠", "1f401", near="rat,hamster", plural="mice"),
    _object("hedgehog", "只刺猬", "1f994"),
    _object("koala", "只考拉", "1f428"),
    _object("kangaroo", "只袋鼠", "1f998", "*"),
    _object("rooster", "只公鸡", "1f413", near="chicken,hen"),
    _object("chick", "只小鸡", "1f424", "*"),
    _object("duck", "只鸭子", "1f986", near="goose"),
    _object("swan", "只天鹅", "1f9a2"),
    _object("owl", "只猫头鹰", "1f989"),
    _object("flamingo", "只火烈鸟", "1f9a9", "*"),
    _object("parrot", "只鹦鹉", "1f99c"),
    _object("frog", "只青蛙", "1f438", near="toad"),
    _object("crocodile", "条鳄鱼", "1f40a", "*", synonyms="alligator"),
    _object("snake", "条蛇", "1f40d", "*"),
    _object("dolphin", "条海豚", "1f42c", "*"),
    _object("shark", "条鲨鱼", "1f988"),
    _object("lobster", "只龙虾", "1f99e", "*", near="shrimp"),
    _object("snail", "只蜗牛", "1f40c", "*"),
    _object("bee", "只蜜蜂", "1f41d", near="wasp,fly"),
    _object("ladybug", "只瓢虫", "1f41e", near="beetle"),
    _object("squirrel", "只松鼠", "1f43f", "*", near="chipmunk"),
    # plants
    _object("rose", "朵玫瑰", "1f339", "*-green", near="flower"),
    _object("tulip", "朵郁金香", "1f337", "*-green"),
    _object("pine tree", "棵松树", "1f332", "*", near="fir,christmas tree"),
    _object("palm tree", "棵棕榈树", "1f334"),
    _object("maple leaf", "片枫叶", "1f341", "*", synonyms="leaf", plural="maple leaves"),
    _object("clover", "片四叶草", "1f340", "*", near="shamrock"),
    # more food
    _object("grapes", "串葡萄", "1f347", "*-green", plural="grapes"),
    _object("watermelon", "块西瓜", "1f349", near="melon"),
    _object("lemon", "个柠檬", "1f34b", "*", near="lime"),
    _object("peach", "个桃子", "1f351", "*-green", near="apricot,mango", plural="peaches"),
    _object("cherries", "串樱桃", "1f352", "*-green", plural="cherries"),
    _object("tomato", "个西红柿", "1f345", "*-green", plural="tomatoes"),
    _object("avocado", "个牛油果", "1f951"),
    _object("eggplant", "个茄子", "1f346", "*", synonyms="aubergine"),
    _object("corn", "根玉米", "1f33d", plural="corn"),
    _object("bell pepper", "个甜椒", "1fad1", "*", synonyms="pepper"),
    _object("bread", "块面包", "1f35e", synonyms="loaf of bread", plural="breads"),
    _object("croissant", "个羊角面包", "1f950"),
    _object("pretzel", "个椒盐卷饼", "1f968"),
    _object("cheese", "块奶酪", "1f9c0", "*", plural="cheeses"),
    _object("french fries", "份薯条", "1f35f", "*", synonyms="fries", plural="french fries"),
    _object("egg", "个鸡蛋", "1f95a", "*"),
    _object("popcorn", "桶爆米花", "1f37f", plural="popcorn"),
    _object("cookie", "块饼干", "1f36a", synonyms="biscuit"),
    # more places and vehicles
    _object("globe", "个地球仪", "1f30d", near="earth"),
    _object("volcano", "座火山", "1f30b", near="mountain", plural="volcanoes"),
    _object("castle", "座城堡", "1f3f0", near="palace"),
    _object("church", "座教堂", "26ea", "*", plural="churches"),
    _object("ambulance", "辆救护车", "1f691"),
    _object("police car", "辆警车", "1f693"),
    _object("taxi", "辆出租车", "1f695", synonyms="cab"),
    _object("scooter", "辆小摩托", "1f6f5", "*", near="vespa,moped"),
    _object("wheel", "个轮子", "1f6de", "*", near="tire"),
    _object("anchor", "个船锚", "2693", "*"),
    _object("ship", "艘轮船", "1f6a2", near="ferry,yacht"),
    _object("helicopter", "架直升机", "1f681", "*"),
    _object("ufo", "个飞碟", "1f6f8", synonyms="flying saucer"),
    # the sky
    _object("sun", "个太阳", "2600", "*"),
    _object("moon", "个月亮", "1f319", "*", synonyms="crescent moon"),
    _object("cloud", "朵云", "2601"),
    _object("rainbow", "道彩虹", "1f308"),
    _object("snowflake", "片雪花", "2744", "*"),
    _object("planet", "颗行星", "1fa90", near="saturn"),
    _object("fire", "团火焰", "1f525", "*", synonyms="flame", plural="fires"),
    # more things
    _object("gift", "份礼物", "1f381", synonyms="present"),
    _object("trophy", "座奖杯", "1f3c6", "*", near="medal", plural="trophies"),
    _object("baseball", "个棒球", "26be", near="softball"),
    _object("american football", "个橄榄球", "1f3c8", "*", near="rugby ball"),
    _object("boxing glove", "只拳击手套", "1f94a", "*"),
    _object("target", "个靶子", "1f3af", near="dartboard"),
    _object("yo-yo", "个悠悠球", "1fa80", "*"),
    _object("game controller", "个游戏手柄", "1f3ae", "*", synonyms="gamepad"),
    _object("die", "个骰子", "1f3b2", plural="dice"),
    _object("puzzle piece", "块拼图", "1f9e9", "*"),
    _object("palette", "个调色盘", "1f3a8", "*"),
    _object("yarn", "团毛线", "1f9f6", "*", synonyms="ball of yarn", plural="balls of yarn"),
    _object("sunglasses", "副墨镜", "1f576", "*", near="glasses", plural="sunglasses"),
    _object("jeans", "条牛仔裤", "1f456", "*", synonyms="trousers", near="pants", plural="jeans"),
    _object("scarf", "条围巾", "1f9e3", "*", plural="scarves"),
    _object("gloves", "副手套", "1f9e4", "*", near="mittens", plural="gloves"),
    _object("coat", "件外套", "1f9e5", "*", synonyms="jacket"),
    _object("boot", "只靴子", "1f97e", "*", synonyms="hiking boot", near="shoe"),
    _object("high heel", "只高跟鞋", "1f460", "*"),
    _object("hat", "顶帽子", "1f452", "*", near="helmet"),
    _object("cap", "顶鸭舌帽", "1f9e2", "*", synonyms="baseball cap"),
    _object("ring", "枚戒指", "1f48d"),
    _object("diamond", "颗钻石", "1f48e", "*", synonyms="gem", near="jewel,crystal"),
    _object("bell", "个铃铛", "1f514", "*"),
    _object("microphone", "个麦克风", "1f3a4"),
    _object("trumpet", "把小号", "1f3ba", "*", near="saxophone"),
    _object("violin", "把小提琴", "1f3bb", "*", near="cello"),
    _object("drum", "个鼓", "1f941"),
    _object("telephone", "部电话", "260e", "*"),
    _object("battery", "节电池", "1f50b", "*", plural="batteries"),
    _object("magnifying glass", "个放大镜", "1f50d", plural="magnifying glasses"),
    _object("candle", "支蜡烛", "1f56f", "*"),
    _object("light bulb", "个灯泡", "1f4a1", "*", near="lamp"),
    _object("lantern", "盏灯笼", "1f3ee", "*"),
    _object("envelope", "个信封", "2709", near="letter"),
    _object("box", "个箱子", "1f4e6", "*", synonyms="package", plural="boxes"),
    _object("mailbox", "个邮筒", "1f4ee", "*", synonyms="postbox", plural="mailboxes"),
    _object("lock", "把锁", "1f512", "*", synonyms="padlock"),
    _object("hammer", "把锤子", "1f528"),
    _object("axe", "把斧头", "1fa93"),
    _object("shield", "面盾牌", "1f6e1", "*"),
    _object("magnet", "块磁铁", "1f9f2", "*"),
    _object("ladder", "架梯子", "1fa9c", "*"),
    _object("door", "扇门", "1f6aa", "*", near="gate"),
    _object("window", "扇窗户", "1fa9f"),
    _object("basket", "个篮子", "1f9fa", "*"),
    _object("watch", "块手表", "231a", "*", synonyms="wristwatch", plural="watches"),
    _object("coin", "枚硬币", "1fa99", "*"),
    _object("money bag", "个钱袋", "1f4b0", "*", near="money"),
)
"""Every object of the world."""

INDEX: dict[str, int] = {entry.name: index for index, entry in enumerate(OBJECTS)}
"""Object name -> index in `OBJECTS`."""
