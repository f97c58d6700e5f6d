"""Text that was hashed into word and word-pair numbers: an LSTM, or a mean for small devices.

Axes: B batch, T words, E numbers per word, C channels. Input (B, 2, T) float32: row 0 the bucket of each word, row 1
that of each pair of words, whole numbers below the vocabulary; 0 is no word, and comes after all words.
Source: hashed n-grams: arXiv 1607.01759, section 2.1; LSTM: doi 10.1162/neco.1997.9.8.1735.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mars_edge.modality import Modality
from mars_training.model.blocks import conv_stack
from mars_training.model.encoders.backbone import Backbone
from mars_training.recipe import EncoderRecipe


class WordEmbedding(nn.Module):
    """Each place's word vector plus its pair's: (B, T, E), exact zeros where there is neither."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width, padding_idx=0)
        self.pairs = nn.Embedding(vocabulary, width, padding_idx=0)

    def forward(self, x: Tensor) -> Tensor:
        ids = x.long()
        embedded: Tensor = self.words(ids[:, 0]) + self.pairs(ids[:, 1])
        return embedded


class TextLstm(nn.Module):
    """(B, 2, T) -> (B, channels[-1], 1, 1): the LSTM's state after the last word, or its mean over all words.

    It reads forwards only, so what follows the last word cannot reach any state that is read: padding needs no packing,
    which no exporter knows. A text without words gives exact zeros.
    """

    def __init__(self, vocabulary: int, recipe: EncoderRecipe) -> None:
        super().__init__()
        self.embedding = WordEmbedding(vocabulary, recipe.embedding)
        self.lstm = nn.LSTM(recipe.embedding, recipe.channels[-1], num_layers=len(recipe.channels), batch_first=True)
        self.reading = recipe.reading

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(x))
        word = (x[:, 0] > 0).to(states.dtype)
        if self.reading == "last":
            # 1 at the last word alone: there, and nowhere else, a word has none after it.
            after = torch.cat([word[:, 1:], torch.zeros_like(word[:, :1])], dim=1)
            weights = word * (1.0 - after)
        else:
            weights = word / word.sum(dim=1, keepdim=True).clamp_min(1.0)
        feature: Tensor = (states * weights[:, :, None]).sum(dim=1)
        return feature[:, :, None, None]


class TextMean(nn.Module):
    """(B, 2, T) -> (B, channels[-1], 1, 1): the mean word vector, then 1x1 convolution blocks."""

    def __init__(self, vocabulary: int, recipe: EncoderRecipe) -> None:
        super().__init__()
        self.embedding = WordEmbedding(vocabulary, recipe.embedding)
        self.stack = conv_stack(recipe.embedding, recipe.channels, kernel=1, strides=recipe.strides)

    def forward(self, x: Tensor) -> Tensor:
        count = (x[:, 0] > 0).to(x.dtype).sum(dim=1, keepdim=True).clamp_min(1.0)
        mean = self.embedding(x).sum(dim=1) / count
        feature: Tensor = self.stack(mean[:, :, None, None])
        return feature


def _vocabulary(modality: Modality) -> int:
    assert modality.vocabulary is not None
    return modality.vocabulary


def _text_lstm(modality: Modality, recipe: EncoderRecipe) -> nn.Module:
    return TextLstm(_vocabulary(modality), recipe)


def _text_mean(modality: Modality, recipe: EncoderRecipe) -> nn.Module:
    return TextMean(_vocabulary(modality), recipe)


BACKBONES = {
    "text_lstm": Backbone(build=_text_lstm, reads=("text",)),
    "text_mean": Backbone(build=_text_mean, reads=("text",)),
}
