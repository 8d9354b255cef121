"""Writes tests/data: what transformers and Python's tokenizers make of texts and conversations.

    python compiler/data/tests/reference/make.py

Needs transformers, jinja2 and tokenizers. The tests read what is stored and need none of them.
"""

import json
import pathlib

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).resolve().parent
DATA = HERE.parent / "data"
TEXT = HERE.parents[3] / "examples" / "data" / "kjv-new-testament.txt"

SPECIAL = [
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
    "<start_of_turn>",
    "<end_of_turn>",
]

# Written for these tests, each in the manner of a family.
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Tools:\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

CHATML = """{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}
<|im_start|>system
You are a helpful assistant.<|im_end|>
    {% endif %}
    {% if message['role'] == 'note' %}
        {% continue %}
    {% endif %}
    {% if message['role'] == 'assistant' %}
<|im_start|>assistant
{% generation %}{{ message['content'].strip() }}<|im_end|>
{% endgeneration %}
    {% else %}
<|im_start|>{{ message.role }}
{{ message.content.split('</think>')[-1].lstrip('\\n') }}<|im_end|>
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}
"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""

NAMESPACE = """{%- set ns = namespace(count=0, last='') -%}
{%- macro turn(role, text) -%}
[{{ role | upper }}] {{ text }}
{% endmacro -%}
{%- for message in messages if message.role != 'system' -%}
    {%- set ns.count = ns.count + 1 -%}
    {%- set ns.last = message.role -%}
    {%- if message.content is string -%}
        {%- set text = message.content -%}
    {%- else -%}
        {%- set text = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') -%}
    {%- endif -%}
    {%- if message.role == 'assistant' -%}
        [ASSISTANT] {%- generation -%} {{ text }}{% if not loop.last %};{% endif %} {%- endgeneration %}

    {% elif message.role.startswith('us') -%}
        {{ turn(message.role, text) }}
    {%- else -%}
        {{ turn(message.role, message | tojson) }}
    {%- endif -%}
{%- endfor -%}
{{ ns.count }} {{ ns.last }}{{ '\\n' if add_generation_prompt else eos_token }}"""

TALK = [
    {"role": "system", "content": "  Answer briefly. \n"},
    {"role": "user", "content": "What is in the beginning?"},
    {"role": "assistant", "content": " The Word. "},
    {"role": "user", "content": "<think>\nhm</think>\n\nAnd \u00e9\u4e2d\U0001f600?"},
    {"role": "assistant", "content": "\u00c9\u4e2d\U0001f600,\nit\u2019s \"quoted\" \\ & <tag>."},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Finds a \"verse\" \u2013 by <number>",
            "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
        },
    }
]
CALL = [
    {"role": "user", "content": "Find verse 3."},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {"n": 3, "b": [1.5, None, True]}}}],
    },
    {"role": "tool", "content": "All things were made by him"},
    {"role": "assistant", "content": "All things were made by him."},
]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "image"}, {"type": "text", "text": "two"}]},
    {"role": "note", "content": "aside"},
    {"role": "assistant", "content": "three"},
    {"role": "user", "content": "four"},
    {"role": "assistant", "content": "five"},
]

CASES = {
    "llama": (LLAMA, [(TALK, None), (TALK[1:], None), (CALL, TOOLS)]),
    "chatml": (CHATML, [(TALK, None), (TALK[1:], None), (TALK[:2], None)]),
    "gemma": (GEMMA, [(TALK[1:], None), (TALK[1:3], None), (TALK, None), (TALK[2:], None)]),
    "namespace": (NAMESPACE, [(PARTS, None), (TALK, None)]),
}

TEXTS = [
    "",
    "In the beginning was the Word, and the Word was with God.",
    " leading and trailing  ",
    "\n\n a\tb\r\nc",
    "na\u00efve \u4e2d\u6587 \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u0627\u0644\u0639",
    "x<|endoftext|>y <|im_start|>user\nhi<|im_end|>",
    "0123456789 it's we'll I'm",
]


def bpe(vocab, special):
    """A byte-level BPE as GPT-2's, trained by Python's tokenizers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = TEXT.read_text(encoding="utf-8")[:200_000]
    tokenizer.train_from_iterator([lines], trainer)
    return tokenizer


def rendered(tokenizer, messages, tools, prompt):
    try:
        return tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, tokenize=False)
    except Exception as error:  # what a template raises
        return {"error": str(error)}


def main():
    DATA.mkdir(exist_ok=True)
    tokenizer = bpe(400, SPECIAL)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|endoftext|>",
        additional_special_tokens=SPECIAL[2:],
    )
    directory = DATA / "tokenizer"
    wrapped.save_pretrained(directory)
    encoded = [{"text": text, "ids": wrapped(text)["input_ids"]} for text in TEXTS]
    (DATA / "encoded.json").write_text(json.dumps(encoded, indent=1) + "\n")

    cases = []
    for name, (template, conversations) in CASES.items():
        wrapped.chat_template = template
        for messages, tools in conversations:
            case = {"template": name, "messages": messages, "tools": tools}
            case["text"] = rendered(wrapped, messages, tools, False)
            case["prompt"] = rendered(wrapped, messages, tools, True)
            if "{% generation" in template or "{%- generation" in template:
                out = wrapped.apply_chat_template(
                    messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True, tokenize=True
                )
                case["ids"], case["mask"] = out["input_ids"], out["assistant_masks"]
            cases.append(case)
    templates = {name: template for name, (template, _) in CASES.items()}
    (DATA / "chat.json").write_text(json.dumps({"templates": templates, "cases": cases}, indent=1) + "\n")

    trained = json.loads(bpe(600, SPECIAL[:1]).to_str())["model"]
    golden = {"vocab": trained["vocab"], "merges": trained["merges"]}
    (DATA / "trained.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    # strftime_now is the one thing that depends on the day: it is held still.
    import datetime
    import transformers.utils.chat_template_utils as utils

    class Still(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2024, 2, 29, 12, 34, 56)

    utils.datetime = Still
    main()
