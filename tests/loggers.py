"""A logger with the interface of Lightning's for Weights & Biases, which keeps what it is given."""

from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.loggers.logger import Logger


class StandIn(Logger):
    """Arguments, `name` and `version` are as in `WandbLogger`: a folder for each project, in it one for each run."""

    logged: ClassVar[dict[str, list[Any]]] = {}

    def __init__(
        self, name: str | None = None, save_dir: str | Path = ".", version: str | None = None, project: str = "bamboo"
    ) -> None:
        super().__init__()
        self.run, self.save_dir, self.project = name, str(save_dir), project
        self.id = version or f"run{len(list(Path(save_dir, project).glob('*')))}"

    save_dir = ""

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str:
        return self.id

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.logged.setdefault(name, []).append((step, value))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.logged.setdefault(key, []).append((step, images))

    def log_text(self, key: str, columns: list[str], data: list[list[str]], step: int | None = None) -> None:
        self.logged.setdefault(key, []).append((step, data))
