"""Generators for copying text and for calling tools; facts and arithmetic are in `tasks`."""

import json
import random
from collections.abc import Callable
from typing import Any

from glm4_mini.conversation import Example, assistant, observation, user
from glm4_mini.facts import WORDS

CITIES = [
    "北京",
    "上海",
    "广州",
    "深圳",
    "天津",
    "重庆",
    "成都",
    "杭州",
    "南京",
    "武汉",
    "西安",
    "长沙",
    "苏州",
    "青岛",
    "大连",
    "厦门",
    "昆明",
    "哈尔滨",
    "济南",
    "郑州",
]
CITIES_EN = [
    "Beijing",
    "Shanghai",
    "Paris",
    "London",
    "Tokyo",
    "Berlin",
    "Rome",
    "Madrid",
    "Cairo",
    "Ottawa",
    "Seoul",
    "Bangkok",
    "Athens",
    "Lima",
]


def all_words(language: str) -> list[str]:
    """Every word of the word categories in one language."""
    column = 1 if language == "zh" else 3
    return [word for name in sorted(WORDS) for word in WORDS[name][column]]


def copy(rng: random.Random) -> Example:
    """Repeat a text of random words or sentences, 3 to about 90 tokens."""
    language = rng.choice(("zh", "en"))
    text = _text(rng, language)
    template = rng.choice(_REPEAT[language])
    return Example("copy", (user(template.format(t=text)),), text, key=text)


def copy_edit(rng: random.Random) -> Example:
    """Repeat a text with one word replaced, or with one word added at its end."""
    language = rng.choice(("zh", "en"))
    is_replacement = rng.random() < 0.65
    words = _word_row(rng, language, shortest=4)
    new = rng.choice([word for word in all_words(language) if word not in words])
    if is_replacement:
        words = words[:20]
        at = rng.randrange(1, len(words))
        edited = [*words[:at], new, *words[at + 1 :]]
        # the word after is as hard as the new one: the place in the text has to be found again
        hard = tuple(edited[at : at + 2])
        prompt = _REPLACE[language].format(old=words[at], new=new, t=" ".join(words))
    else:
        edited, hard = [*words, new], (new,)
        prompt = _APPEND[language].format(new=new, t=" ".join(words))
    return Example("copy_edit", (user(prompt),), " ".join(edited), hard=hard)


def tool_call(rng: random.Random) -> Example:
    """A question that one of the offered tools answers; the reply is the call."""
    tool = rng.choice(_TOOLS)
    prompt, argument = tool["ask"](rng)
    name = tool["schema"]["function"]["name"]
    key = next(iter(tool["schema"]["function"]["parameters"]["properties"]))
    call = json.dumps({key: argument}, ensure_ascii=False)
    tools = _offered(rng, tool)
    return Example("tool_call", (user(prompt),), f"{name}\n{call}", tools, stop="<|observation|>")


def tool_answer(rng: random.Random) -> Example:
    """The sentence that follows a tool's result."""
    tool = rng.choice(_TOOLS)
    prompt, argument = tool["ask"](rng)
    name = tool["schema"]["function"]["name"]
    key = next(iter(tool["schema"]["function"]["parameters"]["properties"]))
    result, sentence = tool["result"](rng, argument)
    call = json.dumps({key: argument}, ensure_ascii=False)
    messages = (
        user(prompt),
        assistant(call, metadata=name),
        observation(json.dumps(result, ensure_ascii=False)),
    )
    answer = sentence["zh" if _is_chinese(prompt) else "en"]
    return Example("tool_answer", messages, answer, _offered(rng, tool))


def tool_missing(rng: random.Random) -> Example:
    """The same questions with no tool on offer: say so instead of inventing a call."""
    prompt, _ = rng.choice(_TOOLS[:2])["ask"](rng)
    answer = "我现在没有可用的工具，查不到这个信息。"
    if not _is_chinese(prompt):
        answer = "I have no tool for that right now."
    return Example("tool_missing", (user(prompt),), answer)


def sentence(rng: random.Random, language: str) -> str:
    """A random sentence: who does what to which thing, where."""

    def pick(name: str) -> str:
        return rng.choice(WORDS[name][1 if language == "zh" else 3])

    things = pick(rng.choice(("fruit", "instrument", "furniture", "vehicle")))
    if language == "zh":
        verb = rng.choice(("看见了", "画了", "买了", "找到了", "想要"))
        return f"{pick('job')}在{pick('place')}{verb}{pick('colour')}的{things}。"
    verb = rng.choice(("sees", "draws", "buys", "finds", "wants"))
    return f"The {pick('job')} {verb} a {pick('colour')} {things} at the {pick('place')}."


def _text(rng: random.Random, language: str) -> str:
    if rng.random() < 0.65:
        return " ".join(_word_row(rng, language, shortest=2))
    count = rng.choice((1, 1, 2, 3, 4))
    joiner = "" if language == "zh" else " "
    return joiner.join(sentence(rng, language) for _ in range(count))


def _word_row(rng: random.Random, language: str, shortest: int) -> list[str]:
    longest = rng.choice((6, 8, 12, 20, 32, 60))
    return rng.sample(all_words(language), rng.randint(shortest, longest))


def _is_chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)


_REPEAT = {
    "zh": ("请重复：{t}", "请复述下面的文字：\n{t}", "照抄一遍：{t}"),
    "en": ("Repeat: {t}", "Repeat the following text:\n{t}", "Copy this: {t}"),
}
_REPLACE = {
    "zh": "请重复，并把 {old} 换成 {new}：\n{t}",
    "en": "Repeat, but replace {old} with {new}:\n{t}",
}
_APPEND = {
    "zh": "请重复，并在最后加上 {new}：\n{t}",
    "en": "Repeat, and add {new} at the end:\n{t}",
}


def _function(name: str, description: str, key: str, meaning: str) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": "string", "description": meaning}},
                "required": [key],
            },
        },
    }


def _ask_place(
    zh: tuple[str, ...], en: tuple[str, ...]
) -> Callable[[random.Random], tuple[str, str]]:
    def ask(rng: random.Random) -> tuple[str, str]:
        if rng.random() < 0.6:
            city = rng.choice(CITIES)
            return rng.choice(zh).format(c=city), city
        city = rng.choice(CITIES_EN)
        return rng.choice(en).format(c=city), city

    return ask


def _ask_product(rng: random.Random) -> tuple[str, str]:
    expression = f"{rng.randint(11, 99)}*{rng.randint(11, 99)}"
    prompt = rng.choice(("请用计算器算{e}", "用工具计算{e}", "Use the calculator for {e}"))
    return prompt.format(e=expression), expression


def _weather(rng: random.Random, city: str) -> tuple[dict[str, Any], dict[str, str]]:
    sky_zh, sky_en = rng.choice(
        (("晴", "sunny"), ("多云", "cloudy"), ("下雨", "rainy"), ("下雪", "snowy"))
    )
    degrees = rng.randint(0, 39)
    sky = sky_zh if _is_chinese(city) else sky_en
    result = {"weather": sky, "temperature": degrees}
    return result, {
        "zh": f"{city}现在的天气是{sky}，气温{degrees}度。",
        "en": f"It is {sky} in {city} and {degrees} degrees.",
    }


def _clock(rng: random.Random, city: str) -> tuple[dict[str, Any], dict[str, str]]:
    time = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    return {"time": time}, {"zh": f"{city}现在是{time}。", "en": f"It is {time} in {city}."}


def _product(rng: random.Random, expression: str) -> tuple[dict[str, Any], dict[str, str]]:
    del rng  # a product has one right result
    left, right = (int(part) for part in expression.split("*"))
    value = left * right
    return {"result": value}, {
        "zh": f"{expression}等于{value}。",
        "en": f"{expression} is {value}.",
    }


_TOOLS: tuple[dict[str, Any], ...] = (
    {
        "schema": _function("get_weather", "查询一座城市的天气", "city", "城市名"),
        "ask": _ask_place(
            ("{c}今天天气怎么样？", "查一下{c}的天气", "{c}现在的天气如何？", "{c}今天冷不冷？"),
            (
                "What is the weather in {c}?",
                "How is the weather in {c} today?",
                "Is it cold in {c} today?",
            ),
        ),
        "result": _weather,
    },
    {
        "schema": _function("get_time", "查询一座城市的当地时间", "city", "城市名"),
        "ask": _ask_place(
            ("{c}现在几点？", "查一下{c}的时间", "{c}现在是什么时间？"),
            ("What time is it in {c}?", "What is the local time in {c}?"),
        ),
        "result": _clock,
    },
    {
        "schema": _function("calculate", "计算一个算式", "expression", "算式"),
        "ask": _ask_product,
        "result": _product,
    },
)


def _offered(rng: random.Random, tool: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The tool that is needed, sometimes among others, in any order."""
    schemas = [tool["schema"]]
    if rng.random() < 0.4:
        schemas.append(rng.choice([other["schema"] for other in _TOOLS if other is not tool]))
    rng.shuffle(schemas)
    return tuple(schemas)
