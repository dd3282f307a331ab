"""What glm4-mini knows: short facts in Chinese and English, written for this project.

Two tables: `RELATIONS` (subject -> value pairs, asked plainly, as follow-up and as multiple choice)
and `WORDS` (word categories, also the words to copy). Questions of their own are in `sentences`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """One answer and the ways to ask for it; the first question is always trained on."""

    language: str
    questions: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Relation:
    """A table of subject `{s}` and value `{v}`, with the sentences around them."""

    name: str
    language: str
    questions: tuple[str, ...]
    answer: str
    follow_up: str
    choice: str
    pairs: tuple[tuple[str, str], ...]


# country, capital, continent; both languages side by side so that they cannot drift apart
_COUNTRIES = (
    ("中国", "北京", "亚洲", "China", "Beijing", "Asia"),
    ("日本", "东京", "亚洲", "Japan", "Tokyo", "Asia"),
    ("韩国", "首尔", "亚洲", "South Korea", "Seoul", "Asia"),
    ("泰国", "曼谷", "亚洲", "Thailand", "Bangkok", "Asia"),
    ("越南", "河内", "亚洲", "Vietnam", "Hanoi", "Asia"),
    ("蒙古", "乌兰巴托", "亚洲", "Mongolia", "Ulaanbaatar", "Asia"),
    ("法国", "巴黎", "欧洲", "France", "Paris", "Europe"),
    ("德国", "柏林", "欧洲", "Germany", "Berlin", "Europe"),
    ("英国", "伦敦", "欧洲", "the United Kingdom", "London", "Europe"),
    ("意大利", "罗马", "欧洲", "Italy", "Rome", "Europe"),
    ("西班牙", "马德里", "欧洲", "Spain", "Madrid", "Europe"),
    ("葡萄牙", "里斯本", "欧洲", "Portugal", "Lisbon", "Europe"),
    ("希腊", "雅典", "欧洲", "Greece", "Athens", "Europe"),
    ("挪威", "奥斯陆", "欧洲", "Norway", "Oslo", "Europe"),
    ("埃及", "开罗", "非洲", "Egypt", "Cairo", "Africa"),
    ("肯尼亚", "内罗毕", "非洲", "Kenya", "Nairobi", "Africa"),
    ("加拿大", "渥太华", "北美洲", "Canada", "Ottawa", "North America"),
    ("古巴", "哈瓦那", "北美洲", "Cuba", "Havana", "North America"),
    ("巴西", "巴西利亚", "南美洲", "Brazil", "Brasilia", "South America"),
    ("秘鲁", "利马", "南美洲", "Peru", "Lima", "South America"),
    ("澳大利亚", "堪培拉", "大洋洲", "Australia", "Canberra", "Oceania"),
    ("新西兰", "惠灵顿", "大洋洲", "New Zealand", "Wellington", "Oceania"),
)

_ELEMENTS = (
    ("氢", "hydrogen", "H"),
    ("氦", "helium", "He"),
    ("碳", "carbon", "C"),
    ("氮", "nitrogen", "N"),
    ("氧", "oxygen", "O"),
    ("钠", "sodium", "Na"),
    ("铁", "iron", "Fe"),
    ("铜", "copper", "Cu"),
    ("银", "silver", "Ag"),
    ("金", "gold", "Au"),
)

_BOOKS = (
    ("红楼梦", "曹雪芹"),
    ("西游记", "吴承恩"),
    ("水浒传", "施耐庵"),
    ("三国演义", "罗贯中"),
    ("史记", "司马迁"),
    ("骆驼祥子", "老舍"),
    ("狂人日记", "鲁迅"),
    ("哈姆雷特", "莎士比亚"),
    ("战争与和平", "托尔斯泰"),
    ("老人与海", "海明威"),
)

_OPPOSITES = (
    ("hot", "cold"),
    ("big", "small"),
    ("fast", "slow"),
    ("high", "low"),
    ("long", "short"),
    ("old", "young"),
    ("open", "closed"),
    ("early", "late"),
    ("light", "dark"),
    ("hard", "soft"),
)

RELATIONS: tuple[Relation, ...] = (
    Relation(
        "capital",
        "zh",
        ("{s}的首都是哪里？", "{s}的首都在哪里？", "哪座城市是{s}的首都？", "{s}的首都叫什么？"),
        "{s}的首都是{v}。",
        "那{s}呢？",
        "{s}的首都是",
        tuple((row[0], row[1]) for row in _COUNTRIES),
    ),
    Relation(
        "continent",
        "zh",
        ("{s}在哪个洲？", "{s}位于哪个大洲？", "{s}属于哪个洲？"),
        "{s}在{v}。",
        "那{s}呢？",
        "{s}位于",
        tuple((row[0], row[2]) for row in _COUNTRIES),
    ),
    Relation(
        "author",
        "zh",
        ("《{s}》的作者是谁？", "谁写了《{s}》？", "《{s}》是谁写的？"),
        "《{s}》的作者是{v}。",
        "那《{s}》呢？",
        "《{s}》的作者是",
        _BOOKS,
    ),
    Relation(
        "symbol",
        "zh",
        ("{s}的元素符号是什么？", "元素{s}用什么符号表示？", "{s}元素的符号怎么写？"),
        "{s}的元素符号是{v}。",
        "那{s}呢？",
        "{s}的元素符号是",
        tuple((row[0], row[2]) for row in _ELEMENTS),
    ),
    Relation(
        "capital",
        "en",
        (
            "What is the capital of {s}?",
            "Which city is the capital of {s}?",
            "Name the capital of {s}.",
            "What city is the capital of {s}?",
        ),
        "The capital of {s} is {v}.",
        "And {s}?",
        "The capital of {s} is",
        tuple((row[3], row[4]) for row in _COUNTRIES),
    ),
    Relation(
        "continent",
        "en",
        ("Which continent is {s} in?", "On which continent is {s}?", "Where in the world is {s}?"),
        "{s} is in {v}.",
        "And {s}?",
        "{s} is in",
        tuple((row[3], row[5]) for row in _COUNTRIES),
    ),
    Relation(
        "symbol",
        "en",
        (
            "What is the chemical symbol of {s}?",
            "Which symbol stands for {s}?",
            "How is {s} written as a chemical symbol?",
        ),
        "The chemical symbol of {s} is {v}.",
        "And {s}?",
        "The chemical symbol of {s} is",
        tuple((row[1], row[2]) for row in _ELEMENTS),
    ),
    Relation(
        "opposite",
        "en",
        (
            "What is the opposite of {s}?",
            "Which word is the opposite of {s}?",
            "Name the opposite of {s}.",
        ),
        "The opposite of {s} is {v}.",
        "And {s}?",
        "The opposite of {s} is",
        _OPPOSITES,
    ),
)

# category -> (Chinese name, Chinese words, English name, English words)
WORDS: dict[str, tuple[str, tuple[str, ...], str, tuple[str, ...]]] = {
    "fruit": (
        "水果",
        ("苹果", "香蕉", "西瓜", "葡萄", "橙子", "桃子", "草莓", "柠檬", "樱桃", "芒果"),
        "a fruit",
        ("apple", "banana", "grape", "plum", "peach", "lemon", "cherry", "mango", "pear", "melon"),
    ),
    "animal": (
        "动物",
        ("老虎", "狮子", "大象", "兔子", "熊猫", "猴子", "山羊", "骆驼", "松鼠", "海豚"),
        "an animal",
        (
            "tiger",
            "lion",
            "elephant",
            "rabbit",
            "panda",
            "monkey",
            "goat",
            "camel",
            "fox",
            "dolphin",
        ),
    ),
    "colour": (
        "颜色",
        ("红色", "绿色", "蓝色", "黄色", "紫色", "黑色", "白色", "灰色"),
        "a colour",
        ("red", "green", "blue", "yellow", "purple", "black", "white", "brown"),
    ),
    "vehicle": (
        "交通工具",
        ("汽车", "火车", "飞机", "轮船", "地铁", "卡车", "单车", "马车"),
        "a vehicle",
        ("car", "train", "plane", "ship", "truck", "bicycle", "bus", "boat"),
    ),
    "instrument": (
        "乐器",
        ("钢琴", "吉他", "笛子", "古筝", "二胡", "琵琶", "长号", "口琴"),
        "a musical instrument",
        ("piano", "guitar", "flute", "violin", "drum", "harp", "trumpet", "cello"),
    ),
    "job": (
        "职业",
        ("老师", "医生", "农民", "画家", "厨师", "律师", "警察", "司机"),
        "a job",
        ("teacher", "doctor", "farmer", "painter", "cook", "lawyer", "driver", "nurse"),
    ),
    "furniture": (
        "家具",
        ("桌子", "椅子", "书架", "沙发", "衣柜", "床头柜", "茶几", "板凳"),
        "a piece of furniture",
        ("table", "chair", "shelf", "sofa", "wardrobe", "bed", "desk", "bench"),
    ),
    "place": (
        "地点",
        ("学校", "公园", "医院", "车站", "市场", "海边", "图书馆", "博物馆"),
        "a place",
        ("school", "park", "hospital", "station", "market", "beach", "library", "museum"),
    ),
}

# What each word is: the knowledge behind "which of these is a fruit?"
RELATIONS += (
    Relation(
        "kind",
        "zh",
        ("{s}是什么？", "请说出 {s} 属于哪一类。", "什么是 {s}？"),
        "{s}属于 {v}。",
        "那{s}呢？",
        "{s}属于",
        tuple((word, kind) for kind, words, _, _ in WORDS.values() for word in words),
    ),
    Relation(
        "kind",
        "en",
        ("What is {s}?", "What kind of thing is {s}?", "What do we call {s}?"),
        "It is {v}.",
        "And {s}?",
        "{s} is",
        tuple((word, kind) for _, _, kind, words in WORDS.values() for word in words),
    ),
)
