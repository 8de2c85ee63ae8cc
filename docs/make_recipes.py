"""Writes the tables of docs/reproducibility.md from the recipes of `sgma_hf`.

Example:
    python docs/make_recipes.py
"""

from pathlib import Path

from sgma_hf.commands.recipes import STATUSES, Recipe, recipe_names
from sgma_hf.publishing.tables import markdown_table


PAGE = Path(__file__).with_name("reproducibility.md")
BEGIN, END = "<!-- recipes: written by docs/make_recipes.py -->", "<!-- end of recipes -->"


def tables() -> str:
    """What the recipes cost, and the choices of each."""
    recipes = sorted(map(Recipe.read, recipe_names()), key=lambda recipe: "base" in recipe.content)
    costs = []
    for recipe in recipes:
        hours, gigabytes = recipe.computed_cost()
        train = recipe.values("train")
        rows = f"{train['per_device_train_batch_size']} x {train.get('gradient_accumulation_steps', 1)}"
        costs.append([f"`{recipe.name}`", train["backbone"], rows, recipe.steps(), f"{hours:.1f}", f"{gigabytes:.0f}"])
    head = ["recipe", "encoder", "rows a step", "steps", "hours, computed", "GB, computed"]
    parts = [
        markdown_table(head, costs, text_columns=3),
        "\n".join(f"- {name}: {said}." for name, said in STATUSES.items()),
    ]
    for recipe in recipes:
        cost = recipe.content["cost"]
        rows = f"{cost['train_rows']} training rows ({cost['source']}), {cost['gmacs_per_row']} GMACs each."
        base = Recipe.read(recipe.content["base"]) if "base" in recipe.content else None
        beside = "" if base is None else f" Where it differs from `{base.name}`:"
        text = f"{recipe.content['title']}. {rows}{beside}"
        parts += [f"### `{recipe.name}`", text, recipe.choices_table(base)]
    return "\n\n".join(parts)


def page() -> str:
    """The page with its tables made anew."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
