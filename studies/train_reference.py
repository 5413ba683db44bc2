"""Train the bundled model, or a larger one: a small Llama on plain text.

    studies/train_reference --corpus CORPUS --out FOLDER [--layers 8] [--tokens 500e6]
                            [--minutes 60]

CORPUS holds train/*.txt.xz and valid.txt (documents separated by a line <|endoftext|>) and
tokenizer/tokenizer.json. It is tokenized once, into OUT/*.bin. FOLDER becomes a Hugging Face
folder in float16. Runs on the CPU or a CUDA GPU, stops after --minutes, and goes on from its
checkpoint when it is started again.
"""

import argparse
import json
import lzma
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|endoftext|>"


def parser():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--corpus", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--hidden", type=int, default=256)
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--heads", type=int, default=4)
    p.add_argument("--kv-heads", type=int, default=2)
    p.add_argument("--ffn", type=int, default=768)
    p.add_argument("--ctx", type=int, default=256, help="training window, tokens")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--warmup", type=int, default=200, help="steps")
    p.add_argument(
        "--tokens",
        type=float,
        default=45e6,
        help="of the whole schedule; the rate decays over its last 40 %%",
    )
    p.add_argument("--minutes", type=float, default=60)
    p.add_argument("--bf16", action="store_true", help="bfloat16 autocast (always on CUDA)")
    p.add_argument("--seed", type=int, default=1)
    return p


def tokenized(tokenizer, files, path):
    """uint16 memory map of the token ids of text files, made once; documents end with END."""
    if not path.exists():
        with open(path.with_suffix(".part"), "wb") as out:
            for file in files:
                data = file.read_bytes()
                if file.suffix == ".xz":
                    data = lzma.decompress(data)
                for document in data.decode().split(END):
                    if document.strip():
                        ids = tokenizer(document.strip() + END, verbose=False)["input_ids"]
                        np.asarray(ids, np.uint16).tofile(out)
                print(f"tokenized {file.name}", flush=True)
        os.replace(path.with_suffix(".part"), path)
    return np.memmap(path, np.uint16, "r")


class Trainer:
    def __init__(self, a):
        torch.manual_seed(a.seed)
        self.a = a
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        a.out.mkdir(parents=True, exist_ok=True)
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(a.corpus / "tokenizer/tokenizer.json"), eos_token=END, bos_token=END
        )
        files = sorted((a.corpus / "train").iterdir())
        self.train = tokenized(self.tokenizer, files, a.out / "train.bin")
        self.valid = tokenized(self.tokenizer, [a.corpus / "valid.txt"], a.out / "valid.bin")
        ends = {
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
        }
        config = LlamaConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=a.hidden,
            intermediate_size=a.ffn,
            num_hidden_layers=a.layers,
            num_attention_heads=a.heads,
            num_key_value_heads=a.kv_heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            **ends,
        )
        self.model = LlamaForCausalLM(config).to(self.device)
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": 0.1},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=a.lr, betas=(0.9, 0.95))
        self.step = 0
        self.steps = int(a.tokens / (a.batch * a.ctx))
        self.checkpoint = a.out / "checkpoint.pt"
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    def rate(self):
        """Learning rate: linear warm-up, constant, linear decay to 3 % over the last 40 %."""
        if self.step < self.a.warmup:
            return self.a.lr * (self.step + 1) / self.a.warmup
        return self.a.lr * max(0.03, min(1.0, (1 - self.step / self.steps) / 0.4))

    def loss(self, data, rng, batch):
        """Mean cross-entropy of random windows."""
        starts = rng.integers(0, len(data) - self.a.ctx - 1, batch)
        texts = [data[s : s + self.a.ctx + 1].astype(np.int64) for s in starts]
        ids = torch.from_numpy(np.stack(texts)).to(self.device)
        half = self.a.bf16 or self.device == "cuda"
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=half):
            logits = self.model(input_ids=ids[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    @torch.no_grad()
    def validate(self):
        """Mean loss of 256 held-out windows, always the same."""
        rng = np.random.default_rng(7)
        return float(np.mean([self.loss(self.valid, rng, 16).item() for _ in range(16)]))

    def save(self):
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        torch.save(state, self.checkpoint.with_suffix(".part"))
        os.replace(self.checkpoint.with_suffix(".part"), self.checkpoint)
        LlamaForCausalLM.from_pretrained(
            None, config=self.model.config, state_dict=self.model.state_dict(), dtype=torch.float16
        ).save_pretrained(self.a.out)
        self.tokenizer.save_pretrained(self.a.out)

    def run(self):
        rng = np.random.default_rng([self.a.seed, self.step])
        started = time.monotonic()
        begun = {
            "params": self.model.num_parameters(),
            "steps": self.steps,
            "start": self.step,
            "device": self.device,
        }
        print(json.dumps(begun), flush=True)
        while self.step < self.steps and time.monotonic() - started < self.a.minutes * 60:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate()
            loss = self.loss(self.train, rng, self.a.batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            if self.step % 50 == 0:
                minutes = (time.monotonic() - started) / 60
                print(
                    f"step {self.step}/{self.steps} loss {loss.item():.3f} minutes {minutes:.1f}",
                    flush=True,
                )
            if self.step % 500 == 0:
                print(f"validation {self.validate():.4f}", flush=True)
                self.save()
        loss = self.validate()
        print(
            f"validation {loss:.4f}, perplexity {math.exp(loss):.2f}, {self.step} steps", flush=True
        )
        self.save()


if __name__ == "__main__":
    Trainer(parser().parse_args()).run()
