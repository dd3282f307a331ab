"""Chat templates of our own making, in the manners of the family's and of fine-tuning tools."""

from typing import Any

from mindformers_glm.tokenizer.chat import NO_OPTIONS, ChatOptions
from mindformers_glm.tokenizer.chat_template import ChatTemplate
from mindformers_glm.tokenizer.segments import SpecialToken
from mindformers_glm.tokenizer.vocabulary import SpecialTokens

ROLES = ("system", "user", "assistant", "observation")
SPECIALS = SpecialTokens.as_written(
    {name: i for i, name in enumerate(("[gMASK]", "<sop>", *(f"<|{role}|>" for role in ROLES)))}
)

# As glm-4-9b-chat: `tools` is set inside an `if` inside the loop, and read nowhere else.
TOOLS_IN_MESSAGES = """[gMASK]<sop>{% for m in messages %}{% if m['tools'] is defined %}<|system|>
# tools{% set tools = m['tools'] %}{% for tool in tools %}{% if tool['type'] == 'function' %}
## {{ tool['function']['name'] }}{% elif tool['type'] == 'python' %}
## python{% endif %}{% endfor %}{% endif %}
{%- if m['content'] %}<|{{ m['role'] }}|>{{ m['metadata'] }}
{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
# As GLM-4-0414: tools beside the messages, wrapped or not; calls in `metadata`.
TOOLS_BESIDE = """[gMASK]<sop>{% if tools %}<|system|>
# tools{% for tool in tools %}{% set f = tool.function if tool.get('function') else tool %}
## {{ f.name }}{% endfor %}{% endif %}
{%- for m in messages if m.role == 'system' %}<|system|>
{{ m.content }}{% endfor %}
{%- for m in messages if m.role != 'system' %}{% set meta = m.get('metadata', '') %}
{%- if m.role in ('user', 'observation') %}<|{{ m.role }}|>
{{ m.content }}{% elif m.role == 'assistant' %}<|assistant|>{{ meta }}
{{ m.content.split('</think>')[-1] }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
# As GLM-4.5 and Qwen: `tool_calls`, whose arguments are iterated over; contents text or parts.
CALLS_IN_TAGS = """[gMASK]<sop>
{%- macro text(content) %}{% if content is string %}{{ content }}{% else %}
{%- for item in content %}{{ item.text }}{% endfor %}{% endif %}{% endmacro %}
{%- for m in messages %}{% if m.role == 'tool' %}<|observation|>
{{ text(m.content) }}{% else %}<|{{ m.role }}|>
{{ text(m.content) }}{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}
{%- for k, v in call.function.arguments.items() %}
<key>{{ k }}</key><value>{{ v if v is string else v | tojson }}</value>{% endfor %}</call>
{%- endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
# A fine-tuning tool's: roles and texts, nothing else.
PLAIN = """[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""


def write(
    template: str, messages: Any, tools: Any = None, options: ChatOptions = NO_OPTIONS
) -> str:
    """The prompt as text, special tokens by name."""
    segments = ChatTemplate(template, {}, SPECIALS, "DIR")(messages, tools, options)
    return "".join(s.name if isinstance(s, SpecialToken) else s for s in segments)


def call_of(name: str, arguments: Any) -> dict[str, Any]:
    """A call in OpenAI's form."""
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
