"""What we save must serve somebody who has only Transformers."""

import json
import subprocess
import sys

CONVERSATION = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": [{"type": "text", "text": "  What is 2*3?"}]},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "Let me see. "},
            {"type": "python", "text": "2*3"},
            {"type": "python_output", "text": "6"},
            {"type": "text", "text": "Six, of course: 1 < 2.\n"},
        ],
    },
    {"role": "user", "content": "Größe 👍🏽 \ue000 12345?"},
]
TEXTS = ["The quick brown fox\n\n  isn't 12345", "", " \u3000 你好"]

STRANGER = """
import json, sys, warnings
warnings.simplefilter("error")
from transformers import AutoTokenizer
folder, conversation, texts = sys.argv[1], *map(json.loads, sys.argv[2:])
tokenizer = AutoTokenizer.from_pretrained(folder)
chat = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_assistant_tokens_mask=True)
batch = tokenizer(texts, padding=True)
print(json.dumps({
    "class": type(tokenizer).__module__,
    "ours": "nanochat" in sys.modules,
    "chat": [chat["input_ids"], chat["assistant_masks"]],
    "texts": [batch["input_ids"], batch["attention_mask"]],
    "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
    "all_special": sorted(tokenizer.all_special_ids),
    "decoded": tokenizer.decode(chat["input_ids"]),
    "limit": tokenizer.model_max_length,
}))
"""


def test_transformers_alone_gives_the_same_ids_without_a_word(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "nanochat"}')
    arguments = [str(tmp_path), json.dumps(CONVERSATION), json.dumps(TEXTS)]
    run = subprocess.run([sys.executable, "-c", STRANGER, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    stranger = json.loads(run.stdout)
    chat = tokenizer.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_assistant_tokens_mask=True)
    batch = tokenizer(TEXTS, padding=True)
    assert stranger == {
        "class": "transformers.tokenization_utils_tokenizers",
        "ours": False,
        "chat": [chat["input_ids"], chat["assistant_masks"]],
        "texts": [batch["input_ids"], batch["attention_mask"]],
        "special": [391, 395, 391],
        "all_special": list(range(391, 400)),
        "decoded": tokenizer.decode(chat["input_ids"]),
        "limit": 2048,
    }


def test_import_of_the_room_is_cheap():
    code = "import sys, nanochat.tokenizer; print('transformers' in sys.modules, 'tiktoken' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False False\n"
