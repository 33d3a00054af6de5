"""Write ``fairseq_ext/conf``, one file per recipe: ``python -m fairseq_ext.recipes``."""

from __future__ import annotations

from pathlib import Path

from fairseq_ext.recipes import EARLIER_NAMES, RECIPES
from fairseq_ext.recipes.hydra import to_yaml

CONF = Path(__file__).resolve().parent.parent / "conf"


def main(folder: Path = CONF) -> None:
    """Write every file, also under the recipe's earlier name, and remove those of recipes that are gone."""
    recipes = RECIPES | {earlier: RECIPES[name] for earlier, name in EARLIER_NAMES.items()}
    for path in folder.glob("*.yaml"):
        if path.stem not in recipes:
            path.unlink()
    for name, recipe in recipes.items():
        (folder / f"{name}.yaml").write_text(to_yaml(recipe), encoding="utf-8")


if __name__ == "__main__":
    main()
