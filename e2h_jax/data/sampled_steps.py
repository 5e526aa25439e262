"""Steps of a response in the tokens as they were sampled, which need not be those that its text is encoded to.

A policy may spell a word by other tokens than the tokenizer would, and reinforcement learning rewards the tokens it drew. So
the text of each token is found first (in context: SentencePiece drops the space of a first token), then which characters each
token touches, and from there on the rules of `steps.py` hold: a token that holds the end of a step and its blank line belongs
to both spans, and all tokens of one character to that character. For tokens that are just what the tokenizer would make of the
text, the spans are those of `encode_solution`.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from os.path import commonprefix
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from e2h_jax.data.steps import EncodedSolution, split_steps
from e2h_jax.data.templates import Template
from e2h_jax.data.tokenizer import end_ids

_PARTIAL = "\ufffd"  # what a part of a character decodes to


def locate(tokenizer: Any, prompt: np.ndarray, tokens: np.ndarray, template: Template) -> EncodedSolution:
    """A prompt and a sampled response, with the token spans of the response's steps.

    The text is that of `Rollout.text`: special tokens (EOS, a tag that is one) have none and belong to no step, nor does what
    follows a stop text. Never raises, whatever the tokens.

    Args:
      prompt: int32 [S].
      tokens: int32 [T], the response.

    Returns:
      `tokens` [S + T] are prompt and response; the spans count from the prompt's first token.
    """
    if tokenizer not in _decoders:
        _decoders[tokenizer] = _Decoder(tokenizer)
    decoder, written = _decoders[tokenizer], np.asarray(tokens).tolist()
    if template not in decoder.ends:
        decoder.ends[template] = end_ids(tokenizer, template)
    if written and written[-1] in decoder.ends[template]:  # it has no text, special token or not
        written.pop()
    text, starts, ends = decoder.spans(written)
    text = template.until_stop(text)
    paragraphs = template.paragraphs(text)
    closings = [paragraph.end for paragraph in paragraphs]
    steps = split_steps(text, template)
    spans = np.zeros((len(steps), 4), np.int32)
    for row, step in enumerate(steps):
        end = bisect_left(starts, step.end)  # the tokens before it start before the step's end
        spans[row] = bisect_right(ends, step.start), end, end, end
        paragraph = paragraphs[bisect_left(closings, step.end)]
        if paragraph.gap < paragraph.end:
            spans[row, 2:] = bisect_right(ends, paragraph.gap), bisect_left(starts, paragraph.end)
    spans += len(prompt)
    return EncodedSolution(
        tokens=np.concatenate([prompt, tokens]).astype(np.int32),
        prompt_length=len(prompt),
        steps=spans[:, :2],
        separators=spans[:, 2:],
        has_answer=bool(steps) and steps[-1].is_answer,
    )


class _Decoder:
    """Texts of a tokenizer's tokens, each token decoded once behind a word that stands for what is before it."""

    def __init__(self, tokenizer: Any):
        self._backend = tokenizer.backend_tokenizer
        self._before = tokenizer.encode("a", add_special_tokens=False)
        self._skipped = len(self._backend.decode(self._before))
        self._pieces: dict[int, str] = {}
        self.ends: dict[Template, tuple[int, ...]] = {}  # `end_ids` of each template

    def _decode(self, rows: Iterable[Sequence[int]]) -> list[str]:
        return [text[self._skipped :] for text in self._backend.decode_batch([[*self._before, *row] for row in rows])]

    def spans(self, tokens: list[int]) -> tuple[str, list[int], list[int]]:
        """The text of the tokens; of each, the character where it starts and the one after its last. Both lists ascend."""
        unknown = sorted(set(tokens) - self._pieces.keys())
        self._pieces.update(zip(unknown, self._decode([token] for token in unknown), strict=True))
        found = self._join(tokens, [_PARTIAL in self._pieces[token] for token in tokens])
        if [found[0]] != self._decode([tokens]):  # a decoder that looks further: all of it together
            found = self._join(tokens, [True] * len(tokens))
        return found

    def _join(self, tokens: list[int], partial: list[bool]) -> tuple[str, list[int], list[int]]:
        """`spans`, where a run of tokens that hold parts of characters is decoded together, token by token."""
        text, starts, ends = "", [], []
        first = 0
        while first < len(tokens):
            if partial[first]:
                after = next((i for i in range(first, len(tokens)) if not partial[i]), len(tokens))
                prefixes = self._decode(tokens[first:end] for end in range(first + 1, after + 1))
            else:
                after, prefixes = first + 1, [self._pieces[tokens[first]]]
            whole, done = prefixes[-1], 0
            for prefix in prefixes:
                starts.append(len(text) + done)
                done = max(done, len(commonprefix([prefix, whole])))
                ends.append(len(text) + min(len(whole), done + (len(prefix) > done)))
            text += whole
            first = after
        return text, starts, ends


_decoders: WeakKeyDictionary[Any, _Decoder] = WeakKeyDictionary()
