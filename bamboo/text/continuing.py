"""What a causal language model makes of the beginning of a text."""

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bamboo.errors import InputError
from bamboo.text.attention import first_position
from bamboo.text.encoder import longest_sequence
from bamboo.text.tokenizer import MASK, special_ids


@torch.no_grad()
def continue_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | Tokenizer,
    beginning: str,
    tokens: int = 30,
    *,
    sample: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
) -> str:
    """A text and how a model goes on with it, by transformers' `generate`.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        beginning: of the text.
        tokens: how many to add at most; the text ends where the model ends its document, too.
        sample: draw each token by its probability; by default the most probable one is taken.
        temperature: what logits are divided by where tokens are drawn.
        seed: of the draws.

    Raises:
        InputError: where there is nothing to add or to draw by, or the model has no positions for it.
    """
    if tokens < 1 or temperature <= 0:
        raise InputError(f"tokens must be at least 1 and temperature above 0, got {tokens} and {temperature}")
    if MASK in beginning:
        raise InputError(f"a causal language model continues a text and fills in nothing: leave {MASK} out")
    backend: Tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
    ids = special_ids(backend)
    read = [ids["cls"], *backend.encode(beginning, add_special_tokens=False).ids]
    longest = longest_sequence(model.config)
    if len(read) >= longest:
        raise InputError(f"{len(read)} tokens leave no room in the model's {longest} positions")
    # Behind the tokens of the tokenizer the padded vocabulary holds nothing that could be written.
    unwritten = [number for number in ids.values() if number != ids["sep"]]
    unwritten += range(backend.get_vocab_size(), model.config.vocab_size)
    first = first_position(model.config)  # `generate` would count from 0
    places = torch.arange(first, first + len(read), device=model.device)[None]
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        (written,) = model.generate(
            torch.tensor([read], device=model.device),
            attention_mask=torch.ones(1, len(read), dtype=torch.long, device=model.device),
            position_ids=places,
            max_new_tokens=min(tokens, longest - len(read)),
            do_sample=sample,
            temperature=temperature if sample else None,
            top_k=0 if sample else None,
            eos_token_id=ids["sep"],
            pad_token_id=ids["pad"],
            suppress_tokens=unwritten,
        ).tolist()
    text: str = backend.decode(written[1:])
    return text
