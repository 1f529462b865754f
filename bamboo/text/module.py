"""What the Lightning modules of text share: the fit of data and model, and the tokenizer in checkpoints."""

from typing import Any, ClassVar

from tokenizers import Tokenizer
from transformers import PreTrainedModel

from bamboo.errors import InputError
from bamboo.text.data import TokenData
from bamboo.text.encoder import config_of, kinds_of, longest_sequence
from bamboo.text.tokenizer import special_ids
from bamboo.training import TrainingModule


class TextModule(TrainingModule):
    """Checkpoints hold the tokenizer too, so that one file is all that is needed to use the model."""

    reads: ClassVar[type[TokenData]]
    model: PreTrainedModel
    tokenizer_json = ""

    def setup(self, stage: str) -> None:
        """Keep the tokenizer of the data. Raises `InputError` where the model cannot read them."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, self.reads):
            needed, name = self.reads.__name__, type(data).__name__
            raise InputError(f"{type(self).__name__} needs {needed}, and the data are {name}")
        self.begin(data.tokenizer)
        config = self.model.config
        size, pad = data.tokenizer.get_vocab_size(), special_ids(data.tokenizer)["pad"]
        if size > config.vocab_size:
            raise InputError(
                f"the data were made with a tokenizer of {size} tokens, and the model has {config.vocab_size}: "
                f"set model.init_args.vocab_size to {size}"
            )
        if pad != config.pad_token_id:
            raise InputError(f"the data's padding token is {pad}: set model.init_args.pad_token_id to it")
        if data.length > longest_sequence(config):
            raise InputError(
                f"the data have {data.length} tokens in a row, above the model's {longest_sequence(config)} positions: "
                "set model.init_args.max_positions, or a lower data.init_args.block_length"
            )
        self.tokenizer_json = data.tokenizer.to_str()

    def begin(self, tokenizer: Tokenizer) -> None:
        """What a module does to its model once it knows the tokenizer of the data."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the tokenizer with the weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["tokenizer"] = self.tokenizer_json

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model or tokenizer; take its tokenizer where no data have given one."""
        if arguments := checkpoint.get("hyper_parameters"):
            theirs, own = (kinds_of(config) for config in (config_of(arguments), self.model.config))
            for key in (key for key in own if own[key] != theirs[key]):  # which may be of the same weights
                raise InputError(
                    f"the checkpoint has {key} {theirs[key]}, and the configuration says {own[key]}: "
                    f"give --model.init_args.{key} {theirs[key]}"
                )
        super().on_load_checkpoint(checkpoint)
        self.tokenizer_json = self.tokenizer_json or checkpoint["tokenizer"]
        if checkpoint["tokenizer"] != self.tokenizer_json:
            raise InputError("the checkpoint was trained with another tokenizer than the one that made these data")
