"""UPMC Food-101: a photograph of a dish and the title of the web page it was found on.

Layout: `texts/train_titles.csv` and `texts/test_titles.csv` with rows `file,title,class` and no header, and
`images/{train,test}/CLASS/FILE`. Validation is a fixed tenth of every class's training rows.
Source: Wang et al., "Recipe recognition with large multimodal food dataset", 2015.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.data.columns import RawFiles, RawRows, columns
from mars_training.data.files import need_files, read_colour, read_csv
from mars_training.data.listing import Entry, Listing
from mars_training.data.picks import balanced_head, held_out
from mars_training.data.split import RawColumn, Source, Split
from mars_training.recipe import DataRecipe, SplitName

SIZE = 299
TEXT = Modality(name="text", kind="text", length=32, vocabulary=2**15)
_VALIDATION_SHARE = 0.1
LABELS: tuple[str, ...] = (
    "apple_pie", "baby_back_ribs", "baklava", "beef_carpaccio", "beef_tartare",
    "beet_salad", "beignets", "bibimbap", "bread_pudding", "breakfast_burrito",
    "bruschetta", "caesar_salad", "cannoli", "caprese_salad", "carrot_cake",
    "ceviche", "cheese_plate", "cheesecake", "chicken_curry", "chicken_quesadilla",
    "chicken_wings", "chocolate_cake", "chocolate_mousse", "churros", "clam_chowder",
    "club_sandwich", "crab_cakes", "creme_brulee", "croque_madame", "cup_cakes",
    "deviled_eggs", "donuts", "dumplings", "edamame", "eggs_benedict",
    "escargots", "falafel", "filet_mignon", "fish_and_chips", "foie_gras",
    "french_fries", "french_onion_soup", "french_toast", "fried_calamari", "fried_rice",
    "frozen_yogurt", "garlic_bread", "gnocchi", "greek_salad", "grilled_cheese_sandwich",
    "grilled_salmon", "guacamole", "gyoza", "hamburger", "hot_and_sour_soup",
    "hot_dog", "huevos_rancheros", "hummus", "ice_cream", "lasagna",
    "lobster_bisque", "lobster_roll_sandwich", "macaroni_and_cheese", "macarons", "miso_soup",
    "mussels", "nachos", "omelette", "onion_rings", "oysters",
    "pad_thai", "paella", "pancakes", "panna_cotta", "peking_duck",
    "pho", "pizza", "pork_chop", "poutine", "prime_rib",
    "pulled_pork_sandwich", "ramen", "ravioli", "red_velvet_cake", "risotto",
    "samosa", "sashimi", "scallops", "seaweed_salad", "shrimp_and_grits",
    "spaghetti_bolognese", "spaghetti_carbonara", "spring_rolls", "steak", "strawberry_shortcake",
    "sushi", "tacos", "takoyaki", "tiramisu", "tuna_tartare",
    "waffles",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a list: a photograph's file name, a page's title, and the class."""

    file: str
    title: str
    label: int


def describe(recipe: DataRecipe) -> Source:
    """A photograph and a title, 101 dishes."""
    size = recipe.size or SIZE
    image = Modality(name="image", kind="image", channels=3, size=(size, size), dtype="uint8", range=(0.0, 255.0))
    return Source(modalities=(image, TEXT), labels=LABELS, positive_label=None, note="UPMC Food-101, published split")


def read(recipe: DataRecipe, split: SplitName, folder: Path) -> Split:
    """The rows of one split, in one group.

    Raises:
        UsageError: no list, a broken row, an unknown class, or a listed photograph that is not there.
    """
    side = "test" if split == "test" else "train"
    listed = folder / "texts" / f"{side}_titles.csv"
    every = _side(read_rows(listed), split, recipe.seed)
    rows = [every[i] for i in balanced_head(_labels(every), recipe.limit)]
    paths = [folder / "images" / side / LABELS[row.label] / row.file for row in rows]
    need_files(paths, listed)
    raw: dict[str, RawColumn] = {
        "image": RawFiles(paths, read_colour),
        "text": RawRows([row.title for row in rows], str),
    }
    return Split(
        inputs=columns(describe(recipe).modalities, raw),
        labels=torch.from_numpy(_labels(rows)),
        groups=torch.zeros(len(rows), dtype=torch.int64),
        group_names=("all",),
        raw=raw,
    )


def listing(recipe: DataRecipe, split: SplitName, folder: Path) -> Listing:
    """The rows of one split, all of them; nothing says who wrote or photographed them.

    Raises:
        UsageError: no list, a broken row, or an unknown class.
    """
    side = "test" if split == "test" else "train"
    rows = _side(read_rows(folder / "texts" / f"{side}_titles.csv"), split, recipe.seed)
    paths = [folder / "images" / side / LABELS[row.label] / row.file for row in rows]
    entries = [
        Entry(id=row.file, label=LABELS[row.label], group=None, files={"image": path, "text": row.title})
        for row, path in zip(rows, paths, strict=True)
    ]
    return Listing(
        entries=entries, raw={"image": RawFiles(paths, read_colour), "text": RawRows([r.title for r in rows], str)}
    )


def _side(rows: list[Row], split: SplitName, seed: int) -> list[Row]:
    if split == "test":
        return rows
    validates = held_out(_labels(rows), _VALIDATION_SHARE, seed=seed)
    return [row for row, held in zip(rows, validates, strict=True) if held == (split == "validation")]


def _labels(rows: list[Row]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([row.label for row in rows], dtype=np.int64)


def read_rows(path: Path) -> list[Row]:
    """The rows of a list, in its order.

    Raises:
        UsageError: no such list, or a row that is not a file, a title and one of the 101 classes.
    """
    numbers = {name: at for at, name in enumerate(LABELS)}
    rows = []
    for at, (file, title, name) in read_csv(path, 3):
        if name.strip() not in numbers:
            raise UsageError(f"{path}, line {at}: {name!r} is none of the {len(LABELS)} classes")
        rows.append(Row(file=file, title=title, label=numbers[name.strip()]))
    return rows
