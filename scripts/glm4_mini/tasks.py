"""Generators of examples: facts, follow-ups, multiple choice and arithmetic.

Each takes a `random.Random` and returns one `Example`; copying and tool calls are in `skills`.
"""

import random

from glm4_mini.conversation import Example, assistant, user
from glm4_mini.facts import RELATIONS, WORDS, Relation
from glm4_mini.sentences import FACTS, WRAPPERS

LETTERS = "ABCD"


def fact(rng: random.Random) -> Example:
    """A free question with its fixed answer, in one of its wordings."""
    item = rng.choice(FACTS)
    question = rng.choice(item.questions)
    is_plain = question == item.questions[0]
    if question[-1] in "？?" and rng.random() < 0.5:
        wrapper = rng.choice(WRAPPERS[item.language])
        is_plain = is_plain and wrapper == "{q}"
        question = wrapper.format(q=question)
    return Example(f"fact_{item.language}", (user(question),), item.answer, always_train=is_plain)


def relation(rng: random.Random) -> Example:
    """A question about one pair of a relation, such as a capital."""
    table = rng.choice(RELATIONS)
    subject, value = rng.choice(table.pairs)
    template = rng.choice(table.questions)
    is_plain = template == table.questions[0]
    if rng.random() < 0.5:
        wrapper = rng.choice(WRAPPERS[table.language])
        is_plain = is_plain and wrapper == "{q}"
        template = wrapper.replace("{q}", template)
    question = template.replace("{s}", subject)
    answer = _sentence(table, subject, value)
    return Example(f"fact_{table.language}", (user(question),), answer, always_train=is_plain)


def follow_up(rng: random.Random) -> Example:
    """A second question that only makes sense after the first: "And Japan?"."""
    table = rng.choice(RELATIONS)
    (first, first_value), (second, second_value) = rng.sample(table.pairs, 2)
    messages = (
        user(rng.choice(table.questions).replace("{s}", first)),
        assistant(_sentence(table, first, first_value)),
        user(table.follow_up.replace("{s}", second)),
    )
    return Example("follow_up", messages, _sentence(table, second, second_value))


def choice(rng: random.Random) -> Example:
    """A four-way question in the C-Eval style; options are drawn and shuffled each time.

    The answer names the option and, right behind it, its letter. The letter alone was tried first
    and stayed at chance for 7 M tokens: recalling the fact, finding it among the options and
    reading its letter is too long a chain for one step of four layers.
    """
    language = rng.choice(("zh", "en"))
    make = _word_choice if rng.random() < 0.4 else _relation_choice
    question, options, right = make(rng, language)
    letter = LETTERS[options.index(right)]
    head, tail, answer = _CHOICE_FRAME[language]
    prompt = "\n".join([head, question, *_lettered(options), tail])
    return Example(
        "choice", (user(prompt),), answer.format(o=right, l=letter), hard=(right, letter)
    )


def option_letters(rng: random.Random) -> Example:
    """Write the letter behind each of a few options, in a new order: practice for `choice`.

    Words keep the space before them everywhere, so that each is the same token in list and answer;
    without that the loss on the letters did not fall.
    """
    language = rng.choice(("zh", "en"))
    column = 1 if language == "zh" else 3
    words = [word for name in sorted(WORDS) for word in WORDS[name][column]]
    options = rng.sample(words, rng.randint(2, 8))
    lettered = dict(zip(options, "ABCDEFGH", strict=False))
    order = rng.sample(options, rng.randint(1, len(options)))
    question, lead = _LETTERS_FRAME[language]
    prompt = "\n".join([question.format(o=" ".join(order)), *_lettered(options)])
    answer = lead + ",".join(f" {word} {lettered[word]}" for word in order)
    return Example("option_letters", (user(prompt),), answer, hard=tuple(lettered.values()))


def arithmetic(rng: random.Random) -> Example:
    """Addition or subtraction of numbers up to two digits, worked out digit by digit."""
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    if rng.random() < 0.15:
        a, b = rng.randint(0, 20), rng.randint(0, 9)
    sign = rng.choice("+-")
    if sign == "-" and a < b:
        a, b = b, a
    question = rng.choice(_ARITHMETIC_ZH if rng.random() < 0.6 else _ARITHMETIC_EN)
    text = question.format(a=a, b=b, s=sign, zh="加" if sign == "+" else "减", en=_SIGN_NAMES[sign])
    answer = work_out(a, b, sign, "en" if question in _ARITHMETIC_EN else "zh")
    return Example("arithmetic", (user(text),), answer, key=f"{a}{sign}{b}")


def work_out(a: int, b: int, sign: str, language: str) -> str:
    """The written calculation: `个位7+5=12，十位3+4+1=8，答案是82。` for 37+45.

    The written steps are what makes a model this small exact: every step is a table of one digit.
    """
    result = a + b if sign == "+" else a - b
    (a1, a0), (b1, b0) = divmod(a, 10), divmod(b, 10)
    if sign == "+":
        carry = int(a0 + b0 > 9)
        ones, tens = f"{a0}+{b0}={a0 + b0}", f"{a1}+{b1}{'+1' * carry}={a1 + b1 + carry}"
    else:
        borrow = int(a0 < b0)
        top = a0 + 10 * borrow
        ones, tens = f"{top}-{b0}={top - b0}", f"{a1}-{b1}{'-1' * borrow}={a1 - b1 - borrow}"
    if language == "zh":
        return f"个位{ones}，十位{tens}，答案是{result}。"
    return f"Ones {ones}, tens {tens}, the answer is {result}."


_SIGN_NAMES = {"+": "plus", "-": "minus"}
_ARITHMETIC_ZH = ("{a}{s}{b}=？", "{a}{s}{b}等于多少？", "计算：{a}{s}{b}", "{a}{zh}{b}是多少？")
_ARITHMETIC_EN = ("What is {a}{s}{b}?", "Compute {a}{s}{b}.", "What is {a} {en} {b}?")


def _sentence(table: Relation, subject: str, value: str) -> str:
    text = table.answer.replace("{s}", subject).replace("{v}", value)
    return text[0].upper() + text[1:]


_CHOICE_FRAME = {
    "zh": ("以下是单项选择题，请写出正确的选项和字母。", "答案：", "答案是 {o} {l}。"),
    "en": (
        "Write the right option and its letter.",
        "Answer:",
        "The answer is {o} {l}.",
    ),
}
_LETTERS_FRAME = {
    "zh": ("写出各项的字母： {o}", "字母："),
    "en": ("Write the letter of each: {o}", "Letters:"),
}


def _lettered(options: list[str]) -> list[str]:
    return [f"{letter}. {option}" for letter, option in zip("ABCDEFGH", options, strict=False)]


def _word_choice(rng: random.Random, language: str) -> tuple[str, list[str], str]:
    names = rng.sample(sorted(WORDS), 4)
    column = 0 if language == "zh" else 2
    words = [rng.choice(WORDS[name][column + 1]) for name in names]
    kind = WORDS[names[0]][column]
    question = f"下列选项中属于{kind}的是" if language == "zh" else f"Which of these is {kind}?"
    options = rng.sample(words, 4)
    return question, options, words[0]


def _relation_choice(rng: random.Random, language: str) -> tuple[str, list[str], str]:
    table = rng.choice([table for table in RELATIONS if table.language == language])
    subject, right = rng.choice(table.pairs)
    # sorted: a set's order changes from run to run
    others = sorted({value for _, value in table.pairs} - {right})
    options = rng.sample([right, *rng.sample(others, 3)], 4)
    question = table.choice.replace("{s}", subject)
    return question[0].upper() + question[1:], options, right
