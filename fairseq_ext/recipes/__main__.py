"""Write ``fairseq_ext/conf``, one file per recipe: ``python -m fairseq_ext.recipes``."""

from __future__ import annotations

from pathlib import Path

from fairseq_ext.recipes import RECIPES
from fairseq_ext.recipes.hydra import to_yaml

CONF = Path(__file__).resolve().parent.parent / "conf"


def main(folder: Path = CONF) -> None:
    """Write every file, and remove those of recipes that are gone."""
    for path in folder.glob("*.yaml"):
        if path.stem not in RECIPES:
            path.unlink()
    for name, recipe in RECIPES.items():
        (folder / f"{name}.yaml").write_text(to_yaml(recipe), encoding="utf-8")


if __name__ == "__main__":
    main()
