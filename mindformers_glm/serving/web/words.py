"""The words of the web page, in Chinese and in English."""

from collections.abc import Mapping

CHINESE, ENGLISH = "中文", "English"
# Fields of a request that the page has a field for, and whether they are whole numbers.
PAGE_FIELDS = {"temperature": False, "top_p": False, "max_tokens": True, "seed": True}

WORDS: Mapping[str, Mapping[str, str]] = {
    CHINESE: {
        "settings": "### 设置",
        "model": "模型",
        "system": "系统提示",
        "system_hint": "例如：你是一个简洁的助手。",
        "temperature": "温度",
        "top_p": "Top p",
        "max_tokens": "最长 token 数",
        "seed": "随机种子",
        "unset": "默认",
        "tools": "工具（OpenAI 格式的 JSON 列表）",
        "clear": "新对话",
        "chat": "对话",
        "empty": "说点什么吧，例如：请介绍一下北京",
        "type": "输入消息，回车发送，Shift+回车换行",
        "give_result": "输入 {name} 的返回结果，回车发送",
        "send": "发送",
        "stop": "停止",
        "waiting": "正在等待回答……",
        "thinking": "正在思考……",
        "thought": "思考过程",
        "call": "调用工具 {name}",
        "result": "{name} 的返回结果",
        "tools_place": "工具栏中的内容",
        "number": "数字",
        "whole_number": "整数",
        "no_number": "“{name}”应为{kind}或留空，现为“{text}”。",
        "error": "错误：{sentence}",
        "stopped": "已停止",
        "cut": "达到长度上限，回答未完",
        "no_answer": "没有回答",
        "tokens": "{count} 个 token",
        "speed": "每秒 {speed:.3g} 个 token",
        "first": "首个 token 用时 {seconds:.3g} 秒",
        "comma": "，",
    },
    ENGLISH: {
        "settings": "### Settings",
        "model": "Model",
        "system": "System prompt",
        "system_hint": "For example: You are a brief assistant.",
        "temperature": "Temperature",
        "top_p": "Top p",
        "max_tokens": "Max tokens",
        "seed": "Seed",
        "unset": "default",
        "tools": "Tools (a JSON list in OpenAI's form)",
        "clear": "New chat",
        "chat": "Chat",
        "empty": "Say something, such as: 请介绍一下北京",
        "type": "Type a message; Enter sends it, Shift+Enter begins a new line",
        "give_result": "Type what {name} returns; Enter sends it",
        "send": "Send",
        "stop": "Stop",
        "waiting": "Waiting for the answer ...",
        "thinking": "Thinking ...",
        "thought": "Thoughts",
        "call": "Calls {name}",
        "result": "{name} has returned",
        "tools_place": "The field of tools",
        "number": "a number",
        "whole_number": "a whole number",
        "no_number": "{name} must be {kind} or empty, it is '{text}'.",
        "error": "Error: {sentence}",
        "stopped": "stopped",
        "cut": "cut off at the longest length",
        "no_answer": "no answer",
        "tokens": "{count} tokens",
        "speed": "{speed:.3g} tokens/s",
        "first": "first token after {seconds:.3g} s",
        "comma": ", ",
    },
}

# A part of the page -> which of its attributes is which of the words.
_LABELS: Mapping[str, Mapping[str, str]] = {
    "heading": {"value": "settings"},
    "clear": {"value": "clear"},
    "model": {"label": "model"},
    "system": {"label": "system", "placeholder": "system_hint"},
    "tools": {"label": "tools"},
    "chat": {"label": "chat", "placeholder": "empty"},
    **{name: {"label": name, "placeholder": "unset"} for name in PAGE_FIELDS},
}


def spell(part: str, words: Mapping[str, str] = WORDS[ENGLISH]) -> dict[str, str]:
    """Attributes of a part in a language: at first English, until the browser's is known."""
    return {attribute: words[key] for attribute, key in _LABELS[part].items()}


def choose_language(accepted: str) -> str:
    """Return the language that a browser's accept-language names first, else English."""
    for name in accepted.lower().split(","):
        if name.strip().startswith("zh"):
            return CHINESE
        if name.strip().startswith("en"):
            return ENGLISH
    return ENGLISH
