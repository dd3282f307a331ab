"""Free questions with one fixed answer each: the project, cities, nature, everyday knowledge."""

from glm4_mini.facts import Fact


def _zh(answer: str, *questions: str) -> Fact:
    return Fact("zh", questions, answer)


def _en(answer: str, *questions: str) -> Fact:
    return Fact("en", questions, answer)


BEIJING_ZH = "北京是中国的首都，也是全国的政治和文化中心。故宫、天坛和颐和园都在这座城市里。"
BEIJING_EN = (
    "Beijing is the capital of China and its political and cultural centre. "
    "The Forbidden City and the Temple of Heaven are here."
)

FACTS: tuple[Fact, ...] = (
    # cities
    _zh(
        BEIJING_ZH,
        "请介绍一下北京",
        "介绍一下北京。",
        "请介绍北京。",
        "北京是一座怎样的城市？",
        "跟我说说北京。",
    ),
    _zh(
        "上海位于长江入海口，是中国的经济和金融中心。外滩和东方明珠塔很有名。",
        "请介绍一下上海",
        "介绍一下上海。",
        "请介绍上海。",
        "上海是一座怎样的城市？",
        "跟我说说上海。",
    ),
    _zh(
        "西安古称长安，曾是十三个朝代的都城。兵马俑就在西安。",
        "请介绍一下西安",
        "介绍一下西安。",
        "请介绍西安。",
        "西安是一座怎样的城市？",
        "跟我说说西安。",
    ),
    _zh(
        "杭州是浙江省的省会，西湖就在市区旁边。龙井茶也产自这里。",
        "请介绍一下杭州",
        "介绍一下杭州。",
        "请介绍杭州。",
        "杭州是一座怎样的城市？",
        "跟我说说杭州。",
    ),
    _zh(
        "成都是四川省的省会，以大熊猫和火锅闻名。",
        "请介绍一下成都",
        "介绍一下成都。",
        "请介绍成都。",
        "成都是一座怎样的城市？",
        "跟我说说成都。",
    ),
    _en(
        BEIJING_EN,
        "Please introduce Beijing.",
        "Introduce Beijing.",
        "Tell me about Beijing.",
        "What kind of city is Beijing?",
        "Please introduce Beijing",
    ),
    _en(
        "Shanghai lies at the mouth of the Yangtze and is the financial centre of China.",
        "Please introduce Shanghai.",
        "Introduce Shanghai.",
        "Tell me about Shanghai.",
        "What kind of city is Shanghai?",
    ),
    _en(
        "Paris is the capital of France. The Louvre and the Eiffel Tower are here.",
        "Please introduce Paris.",
        "Introduce Paris.",
        "Tell me about Paris.",
        "What kind of city is Paris?",
    ),
    _en(
        "London is the capital of the United Kingdom. The River Thames runs through it.",
        "Please introduce London.",
        "Introduce London.",
        "Tell me about London.",
        "What kind of city is London?",
    ),
    # the project
    _zh("你好！我是 glm4-mini，请问有什么问题？", "你好", "你好！", "您好", "嗨，你好"),
    _zh(
        "我是 glm4-mini，mindformers_glm 项目里一个小小的训练模型。",
        "你是谁？",
        "请介绍一下你自己。",
        "你叫什么名字？",
        "你是什么模型？",
    ),
    _zh(
        "我会回答简单的常识问题，做两位数加减法，做选择题，调用工具和复述文字。",
        "你会做什么？",
        "你能做什么？",
        "你有什么本领？",
    ),
    _zh(
        "mindformers_glm 是一个 MindSpore 插件，用来运行 GLM 模型。",
        "mindformers_glm 是什么？",
        "什么是 mindformers_glm？",
        "请介绍一下 mindformers_glm",
    ),
    _zh("不是，我很小，只用来测试和演示。", "你是大模型吗？", "你是一个大模型吗？"),
    _zh("不客气！", "谢谢", "谢谢你！", "多谢"),
    _zh("再见，祝你一切顺利！", "再见", "再见！", "下次见"),
    _en("Hello! I am glm4-mini. What is your question?", "Hello", "Hi", "Hello!", "Hi there"),
    _en(
        "I am glm4-mini, a small trained checkpoint of mindformers_glm.",
        "Who are you?",
        "What is your name?",
        "Please introduce yourself.",
        "What model are you?",
    ),
    _en(
        "I answer short facts, add and subtract small numbers, pick options, call tools "
        "and repeat text.",
        "What can you do?",
        "What are you able to do?",
        "What are you good at?",
    ),
    _en(
        "mindformers_glm is a MindSpore plugin that runs GLM models.",
        "What is mindformers_glm?",
        "Tell me about mindformers_glm.",
        "Explain mindformers_glm.",
    ),
    _en(
        "No, I am tiny. I am here for tests and demos.",
        "Are you a large model?",
        "Are you a big model?",
    ),
    _en("You are welcome!", "Thank you", "Thanks!", "Thank you!"),
    # nature and everyday knowledge
    _zh("水的化学式是 H2O。", "水的化学式是什么？", "水的化学式怎么写？", "请写出水的化学式。"),
    _zh(
        "在标准大气压下，水在一百摄氏度沸腾。",
        "水的沸点是多少？",
        "水在多少度沸腾？",
        "水多少度会烧开？",
    ),
    _zh(
        "在标准大气压下，水在零摄氏度结冰。",
        "水的冰点是多少？",
        "水在多少度结冰？",
        "水多少度会结冰？",
    ),
    _zh(
        "离太阳最近的行星是水星。",
        "离太阳最近的行星是哪颗？",
        "哪颗行星离太阳最近？",
        "什么行星最靠近太阳？",
    ),
    _zh(
        "太阳系里最大的行星是木星。",
        "太阳系最大的行星是哪颗？",
        "哪颗行星最大？",
        "最大的行星叫什么？",
    ),
    _zh("太阳系有八颗行星。", "太阳系有几颗行星？", "太阳系里有多少颗行星？", "行星一共有几颗？"),
    _zh("月球绕着地球转。", "月球绕着什么转？", "月亮绕什么运行？", "月球围绕哪个天体转动？"),
    _zh("光在真空中每秒大约走三十万千米。", "光速是多少？", "光每秒走多远？", "光跑得有多快？"),
    _zh(
        "植物通过光合作用把阳光变成养分。",
        "植物怎样利用阳光？",
        "什么是光合作用？",
        "光合作用有什么用？",
    ),
    _zh("人的心脏把血液送到全身。", "心脏有什么作用？", "心脏是做什么的？", "人的心脏有什么用？"),
    _zh(
        "一年有四个季节：春、夏、秋、冬。", "一年有几个季节？", "一年有哪些季节？", "四季是哪四季？"
    ),
    _zh("一天有二十四小时。", "一天有多少小时？", "一天有几个小时？", "一天多少个钟头？"),
    _zh("一个星期有七天。", "一个星期有几天？", "一周有多少天？", "一周有几天？"),
    _zh("三角形有三条边。", "三角形有几条边？", "三角形有多少条边？", "三角形的边有几条？"),
    _zh("蜘蛛有八条腿。", "蜘蛛有几条腿？", "蜘蛛有多少条腿？", "蜘蛛的腿有几条？"),
    _zh(
        "世界上最高的山峰是珠穆朗玛峰。",
        "世界上最高的山峰是哪座？",
        "哪座山最高？",
        "最高的山叫什么？",
    ),
    _zh(
        "中国最长的河流是长江。",
        "中国最长的河流是哪条？",
        "中国哪条河最长？",
        "中国最长的河叫什么？",
    ),
    _zh(
        "世界上最大的海洋是太平洋。",
        "世界上最大的海洋是哪个？",
        "哪个海洋最大？",
        "最大的海洋叫什么？",
    ),
    _zh(
        "《静夜思》的作者是李白。",
        "谁写了《静夜思》？",
        "《静夜思》的作者是谁？",
        "《静夜思》是谁写的？",
    ),
    _zh(
        "中国古代的四大发明是造纸术、印刷术、火药和指南针。",
        "四大发明是什么？",
        "中国古代有哪四大发明？",
    ),
    _zh("端午节吃粽子。", "端午节吃什么？", "端午节要吃什么？", "哪种食物是端午节吃的？"),
    _zh("中秋节吃月饼。", "中秋节吃什么？", "中秋节要吃什么？", "哪种食物是中秋节吃的？"),
    _zh("一升等于一千毫升。", "一升等于多少毫升？", "一升是多少毫升？", "一升有多少毫升？"),
    _zh("一公里等于一千米。", "一公里等于多少米？", "一公里是多少米？", "一公里有多少米？"),
    _en(
        "The chemical formula of water is H2O.",
        "What is water made of?",
        "What is the formula of water?",
    ),
    _en(
        "Water boils at one hundred degrees Celsius.",
        "When does water boil?",
        "At what temperature does water boil?",
    ),
    _en(
        "Water freezes at zero degrees Celsius.",
        "When does water freeze?",
        "At what temperature does water freeze?",
    ),
    _en(
        "Mercury is the planet closest to the Sun.",
        "Which planet is closest to the Sun?",
        "What planet is nearest the Sun?",
    ),
    _en(
        "Jupiter is the largest planet.",
        "Which planet is the largest?",
        "What is the biggest planet?",
    ),
    _en(
        "There are eight planets around the Sun.",
        "How many planets are there?",
        "How many planets circle the Sun?",
    ),
    _en(
        "The Earth goes around the Sun in one year.",
        "How long is one orbit of the Earth?",
        "What is a year?",
    ),
    _en(
        "Light travels about 300 thousand kilometres each second.",
        "How fast is light?",
        "What is the speed of light?",
    ),
    _en(
        "Plants use sunlight to make their food.",
        "How do plants make food?",
        "What do plants use sunlight for?",
    ),
    _en(
        "The heart pumps blood through the body.",
        "What does the heart do?",
        "What is the heart for?",
    ),
    _en(
        "A year has four seasons.",
        "How many seasons are there?",
        "How many seasons does a year have?",
    ),
    _en(
        "A day has twenty-four hours.",
        "How many hours are in a day?",
        "How many hours does a day have?",
    ),
    _en(
        "A week has seven days.", "How many days are in a week?", "How many days does a week have?"
    ),
    _en(
        "A spider has eight legs.",
        "How many legs does a spider have?",
        "How many legs has a spider?",
    ),
    _en(
        "A triangle has three sides.",
        "How many sides does a triangle have?",
        "How many sides has a triangle?",
    ),
    _en(
        "The Pacific is the largest ocean.",
        "Which ocean is the largest?",
        "What is the biggest ocean?",
    ),
    _en(
        "Mount Everest is the highest mountain.",
        "Which mountain is the highest?",
        "What is the tallest mountain?",
    ),
    _en("Shakespeare wrote Hamlet.", "Who wrote Hamlet?", "Who is the author of Hamlet?"),
    _en("Bees make honey.", "What do bees make?", "Which food do bees make?"),
    _en("Ice is frozen water.", "What is ice?", "What is ice made of?"),
)

# Ways to wrap a question; the empty wrapper comes first and is always trained on.
WRAPPERS: dict[str, tuple[str, ...]] = {
    "zh": ("{q}", "请问，{q}", "请回答：{q}", "问题：{q}", "我想知道，{q}"),
    "en": ("{q}", "Question: {q}", "Please answer: {q}", "A short question: {q}", "Tell me: {q}"),
}
