"""Reads a published folder as a stranger would: plain transformers, in a process that cannot import `nbutils`.

Run as a file, with a JSON job on standard input; writes one JSON object to standard output.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Does the job: folder, conversations, prompts, max_new_tokens.

    For each prompt the ids of the reply (without the end token), and at each step the lead of the best score.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    job = json.load(sys.stdin)  # after the imports: the asking process works meanwhile
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32).eval()
    encoded = tokenizer.apply_chat_template(job["conversations"], return_dict=True)
    replies = []
    for messages in job["prompts"]:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )  # each (1, T)
        with torch.inference_mode():
            out = model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=job["max_new_tokens"],
                output_scores=True,
                return_dict_in_generate=True,
            )
        ids = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        best = torch.stack(out.scores).squeeze(1).topk(2).values  # (new tokens, 2)
        end = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids)
        replies.append({"ids": ids[:end], "leads": (best[:, 0] - best[:, 1]).tolist()})
    conversations = [{"ids": ids, "leads": []} for ids in encoded["input_ids"]]
    json.dump({"conversations": conversations, "replies": replies}, sys.stdout)


if __name__ == "__main__":
    sys.modules["nbutils"] = None  # type: ignore[assignment]  # from here on, importing it raises ImportError
    main()
