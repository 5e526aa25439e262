"""The device side of sampling: prefill prompts into places, decode all rows for a few blocks, start the next samples at once.

Shapes: P groups, N rows of each (slots), S prompt bucket, V vocabulary, C blocks of BLOCK steps of one dispatch, Q queue.
A group has two places for prompts. Its rows draw samples of either; a row that has ended takes the next sample of the group's
queue when the next block begins, without asking the host. All rows so begin at multiples of BLOCK, and the keys and values of
a token stand where its place in its own solution says: a row's tokens depend on its prompt, its key and the settings alone, not
on its neighbours, on where it stands, or on when it began.
"""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from e2h_jax.models import attention
from e2h_jax.models.attention import KeyValues
from e2h_jax.models.cached_attention import LayerCache, chunk_sizes, decode, settle
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.rules import axis_size, constrain
from e2h_jax.parallel.shapes import is_abstract, shapes
from e2h_jax.sampling.choose import Settings, choose, row_keys, row_uniforms
from e2h_jax.sampling.exchange import Log, Rows, Work, targets_of
from e2h_jax.sampling.weights import Load, describe_load, take, unstacked

BLOCK = 8  # steps between two moments at which ended rows are given their next sample
BLOCKS = 4  # blocks of a dispatch, at most
SUFFIX_CHUNK = 64  # columns of the first suffix chunks
FEW_ROWS = 8  # of a shard; fewer of them have larger first chunks
SUFFIX_CHUNKS = 4  # of this size, before they double. More: fewer columns read in vain, and more programs to compile


def suffix_sizes(max_new_tokens: int, rows: int) -> list[int]:
    """Columns of the chunks that hold a row's suffix, where a shard has so many rows.

    A step of few rows reads weights above all, and columns in vain cost it little: larger chunks are fewer programs.
    """
    first = SUFFIX_CHUNK * max(1, FEW_ROWS // rows)
    return chunk_sizes(min(first, -(-max_new_tokens // BLOCK) * BLOCK), max_new_tokens - 1, SUFFIX_CHUNKS)


class Description(NamedTuple):
    """The largest programs of a kernel, each with its arguments, and what it keeps on the devices; for `e2h plan`."""

    load: Load
    prefill: tuple[jax.stages.Wrapped, tuple]
    decode: tuple[jax.stages.Wrapped, tuple]
    weights: tuple
    prompts: tuple  # caches of prompts, rows and their logits: there from the beginning
    suffixes: list  # caches of what rows have drawn: made when they are needed


class Kernel:
    """Programs of one model on one mesh, and its caches on the device.

    `foresee` says which programs may be needed. Each is compiled when it is first asked for, or by `compile`, and once; asking
    for another is an error, so that nothing compiles unforeseen.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        config: LlamaConfig,
        params: nnx.State,
        mesh: Mesh,
        *,
        groups: int,
        rows: int,
        seed: int,
        settings: Settings,
        prompt_bucket: int = 64,
        taken: bool = False,
    ):
        """`groups` must be a multiple of the mesh's batch shards; prompts are padded to prompt_bucket x 1, 2, 4, 8, …

        `taken`: see `update`.
        With ShapeDtypeStructs as `params`, on a mesh of devices that need not exist, `compile` makes the same programs, to be
        examined and not run.
        """
        self.graph, self.config, self.mesh = graph, config, mesh
        self.groups, self.rows, self.seed, self.settings = groups, rows, seed, settings
        self.prompt_bucket, self.shards = prompt_bucket, axis_size(mesh, "batch")
        if groups % self.shards:
            raise ValueError(f"{groups} groups of rows do not divide over {self.shards} batch shards")
        self._suffix_sizes = suffix_sizes(settings.max_new_tokens, groups * rows // self.shards)
        self._prefix: tuple[list, list] = ([], [])  # by place: chunks, each [P, K, c, h] of every layer
        self._suffix: list = []  # chunks, each [P, K, N, c, h] of every layer
        self.programs: dict[tuple, jax.stages.Compiled | None] = {}  # by ("prefill", S), …; None until they are compiled
        self.columns = (0, 0)  # prompt columns of a group and suffix columns of a row that the last dispatch read
        self.update(params, taken=taken)

    def adopt(self, other: "Kernel") -> None:
        """Uses the weights that another kernel of the same model and mesh has: one copy for both."""
        self._params = other._params

    def release(self) -> None:
        """Lets go of the weights, until `update` or `adopt` brings some: held on, old ones would lie beside the new."""
        self._params = None

    def update(self, params: nnx.State, *, taken: bool = False) -> None:
        """Takes new weights of the same shapes, in the compute dtype and layer by layer.

        `taken`: out of `params`, which are left empty: the devices never hold more than one parameter twice.
        """
        self.abstract = is_abstract(params)
        with jax.set_mesh(self.mesh):
            self._params = None  # the old ones make room
            self._params = (take if taken else unstacked)(params, self.config.dtype)

    def weights(self) -> list[dict[str, jax.Array]]:
        """The parameters that every step reads whole: all but the embedding (unless it is the output matrix, too), by layer."""
        rest, layers = self._params
        heads = {name: value for name, value in rest.items() if name != "embedding" or "lm_head" not in rest}
        return [{name: param.get_value() for name, param in part.items()} for part in (heads, *layers)]

    def foresee(self, lengths: Iterable[int]) -> None:
        """Allows the programs for prompts of these lengths and makes room for them. Called again, it adds what is new."""
        buckets = sorted({bucket for bucket in map(self.bucket, lengths) if ("prefill", bucket) not in self.programs})
        if not buckets:
            return
        for bucket in buckets:
            chunks, pieces = len(chunk_sizes(self.prompt_bucket, bucket)), range(1, len(self._suffix_sizes) + 1)
            self.programs |= dict.fromkeys([("prefill", bucket), *(("decode", chunks, number) for number in pieces)])
        self.programs |= {("suffix", size): self.programs.get(("suffix", size)) for size in self._suffix_sizes}
        with jax.set_mesh(self.mesh):
            if not self._prefix[0]:
                self._rows, self._first_logits = self._run(jax.jit(self._nothing).lower().compile())
            for size in chunk_sizes(self.prompt_bucket, buckets[-1])[len(self._prefix[0]) :]:
                program = jax.jit(self._chunk, static_argnums=0).lower(size).compile()
                for place in self._prefix:
                    place.append(self._run(program))

    def compile(self) -> None:
        """Compiles all programs that are allowed and not yet there."""
        for key in list(self.programs):
            self._program(*key)

    def _program(self, *key) -> jax.stages.Compiled:
        """The program of this key, compiled if it has not been; KeyError for one that was not foreseen."""
        if self.programs[key] is None:
            makers = {"prefill": self._prefilling, "decode": self._decoding, "suffix": self._growing}
            name, *sizes = key
            with jax.set_mesh(self.mesh):
                program, arguments = makers[name](*sizes)
                self.programs[key] = program.lower(*arguments).compile()
        return self.programs[key]

    def describe(self, params: nnx.State, length: int, *, taken: bool = False) -> Description:
        """The largest programs for prompts up to this length and the caches, where `params` were shapes; see `Description`."""
        bucket = self.bucket(length)
        self.foresee([length])
        decode = self._decoding(len(chunk_sizes(self.prompt_bucket, bucket)), len(self._suffix_sizes))
        return Description(
            describe_load(params, self.config.dtype, taken=taken),
            self._prefilling(bucket),
            decode,
            self._params,
            (self._prefix, self._rows, self._first_logits),
            decode[1][3],  # the very shapes, which count once
        )

    def _growing(self, size: int) -> tuple[jax.stages.Wrapped, tuple]:
        """The program that makes a chunk of the suffix, and what it is called with."""
        return jax.jit(self._chunk, static_argnums=(0, 1)), (size, self.rows)

    def _prefilling(self, bucket: int) -> tuple[jax.stages.Wrapped, tuple]:
        """The program that prefills prompts of this bucket, and what it is called with."""
        place = self._prefix[0][: len(chunk_sizes(self.prompt_bucket, bucket))]
        ids, targets = np.zeros((self.shards, bucket), np.int32), targets_of(np.zeros(self.groups, bool), self.shards)
        arguments = (self._params, place, self._first_logits, np.int32(0), ids, ids[:, 0], *targets)
        return jax.jit(self._prefill, donate_argnums=(1, 2)), arguments

    def _decoding(self, chunks: int, pieces: int) -> tuple[jax.stages.Wrapped, tuple]:
        """The program that decodes with so many chunks of prompts and of suffixes, and what it is called with."""
        prefix, suffix = [place[:chunks] for place in self._prefix], self._suffix_chunks(pieces)
        arguments = (self._params, prefix, self._first_logits, suffix, self._rows, self.nothing_to_do(), np.int32(0))
        return jax.jit(self._decode, donate_argnums=(3, 4)), arguments

    def _suffix_chunks(self, pieces: int) -> list:
        """Shapes of the first chunks of the suffix."""
        return [shapes(self._program("suffix", size).out_info) for size in self._suffix_sizes[:pieces]]

    def _run(self, program: jax.stages.Compiled):
        """What a program without inputs returns; only its shapes and shardings where the weights are abstract."""
        return shapes(program.out_info) if self.abstract else program()

    def bucket(self, length: int) -> int:
        """The padded length of a prompt: a function of the prompt alone, so numerics are too."""
        return sum(chunk_sizes(self.prompt_bucket, length))

    def groups_of(self, process: int) -> set[int]:
        """The groups whose rows this process's devices hold (the first one's, where a row is cut over several hosts)."""
        firsts = self.mesh.devices.reshape(self.shards, -1)[:, 0]
        per_shard = self.groups // self.shards
        return {group for group in range(self.groups) if firsts[group // per_shard].process_index == process}

    def nothing_to_do(self) -> Work:
        """Work without prompts or samples, for the host to fill in."""
        groups, queue = self.groups, self.rows * BLOCKS
        return Work(
            lengths=np.ones((2, groups), np.int32),
            problems=np.zeros((2, groups), np.uint32),
            queue_place=np.zeros((groups, queue), np.int32),
            queue_sample=np.zeros((groups, queue), np.uint32),
            queue_length=np.zeros(groups, np.int32),
            cancel=np.zeros((groups, self.rows), bool),
        )

    def prefill(self, place: int, ids: np.ndarray, lengths: np.ndarray, into: np.ndarray) -> None:
        """Runs one prompt per batch shard and stores it in one or several groups of the shard.

        Args:
          place: 0 or 1, where in the groups.
          ids: int32 [shards, S] right-padded; S must be a `bucket` that was foreseen.
          lengths: int32 [shards], at least 1.
          into: bool [groups], those that get their shard's prompt.
        """
        chunks = len(chunk_sizes(self.prompt_bucket, ids.shape[1]))
        with jax.set_mesh(self.mesh):
            prefix, targets = self._prefix[place][:chunks], targets_of(into, self.shards)
            self._prefix[place][:chunks], self._first_logits = self._program("prefill", ids.shape[1])(
                self._params, prefix, self._first_logits, np.int32(place), ids, lengths, *targets
            )

    def wait(self) -> None:
        """Until everything asked for so far is done."""
        jax.block_until_ready((self._first_logits, self._rows))

    def decode(self, work: Work, *, blocks: int, oldest: int) -> Log:
        """Decodes up to `blocks` (at most BLOCKS) blocks of steps; ends early when every row has ended and no sample waits.

        Args:
          work: what to start, see `Work`.
          oldest: the age of the oldest active row: decides how much of the suffix is read.
        """
        chunks = len(chunk_sizes(self.prompt_bucket, int(work.lengths.max())))
        pieces = self._pieces(oldest + blocks * BLOCK)  # as many as the oldest row will need
        self.columns = self.read_columns(int(work.lengths.max()), oldest + blocks * BLOCK)
        with jax.set_mesh(self.mesh):
            while len(self._suffix) < pieces:
                self._suffix.append(self._program("suffix", self._suffix_sizes[len(self._suffix)])())
            prefix = [place[:chunks] for place in self._prefix]
            self._suffix[:pieces], self._rows, log = self._program("decode", chunks, pieces)(
                self._params, prefix, self._first_logits, self._suffix[:pieces], self._rows, work, np.int32(blocks)
            )
        return log

    def read_columns(self, length: int, age: int) -> tuple[int, int]:
        """Columns of a group's prompts and of a row's suffix that a step reads, with the longest prompt and the oldest row."""
        return 2 * self.bucket(length), sum(self._suffix_sizes[: self._pieces(age)]) + BLOCK

    def _pieces(self, age: int) -> int:
        needed = min(age, self.settings.max_new_tokens - 1)
        return next(n for n in range(1, len(self._suffix_sizes) + 1) if sum(self._suffix_sizes[:n]) >= needed)

    # The programs

    def _chunk(self, size: int, *rows: int) -> list[KeyValues]:
        """Zeros for `size` columns of every layer: [P, K, size, h] of prompts, [P, K, N, size, h] of N rows."""
        c = self.config
        zeros = jnp.zeros((self.groups, c.kv_heads, *rows, size, c.head_dim), c.dtype)
        return [KeyValues(*(_at_home(zeros) for _ in range(2))) for _ in range(c.layers)]

    def _nothing(self) -> tuple[Rows, jax.Array]:
        shape, vocabulary = (self.groups, self.rows), self.config.vocab_size
        zeros = jnp.zeros(shape, jnp.int32)
        rows = Rows(jnp.zeros((*shape, vocabulary)), zeros, zeros > 0, zeros, zeros.astype(jnp.uint32))
        return _rows_at_home(rows), constrain(jnp.zeros((2, self.groups, vocabulary)), None, "batch", "vocab")

    def _model(self, params):
        rest, layers = params
        return nnx.merge(self.graph, nnx.State(dict(rest) | {"blocks": layers[0]})), layers

    def _prefill(self, params, place, first_logits, place_index, ids_DxS, lengths_D, targets_IxD, count):
        model, layers = self._model(params)
        shards, per_shard = self.shards, self.groups // self.shards
        ids_DxS = constrain(ids_DxS, "batch", None)
        positions = jnp.minimum(jnp.arange(ids_DxS.shape[1]), lengths_D[:, None] - 1)  # padding is no length
        hidden, kept = model(ids_DxS, positions, attention.prefill(lengths_D), [None] * len(layers), layers)
        last = jnp.take_along_axis(hidden, (lengths_D - 1)[:, None, None], axis=1)[:, 0]
        logits_DxV = constrain(model.logits(last), "batch", "vocab")

        def insert(i, old, new):  # into the i-th target group of every shard
            split = old.reshape(shards, per_shard, *old.shape[1:])
            split = split.at[jnp.arange(shards), targets_IxD[i]].set(new, mode="drop", unique_indices=True)
            return split.reshape(old.shape)

        def fill(i, chunks, new):
            start, filled = 0, []
            for chunk in chunks:
                columns = slice(start, start + chunk.k.shape[-2])
                filled.append(KeyValues(*(_at_home(insert(i, x, y[:, :, columns])) for x, y in zip(chunk, new, strict=True))))
                start = columns.stop
            return filled

        filled = []  # a loop per layer: what one has stored need not be kept until the last
        for *chunks, new in zip(*place, kept, strict=True):
            filled.append(jax.lax.fori_loop(0, count, partial(fill, new=new), chunks))
        own = jnp.take(first_logits, place_index, axis=0)
        own = jax.lax.fori_loop(0, count, lambda i, old: constrain(insert(i, old, logits_DxV), "batch", "vocab"), own)
        first_logits = jax.lax.dynamic_update_index_in_dim(first_logits, own, place_index, axis=0)
        return [list(chunk) for chunk in zip(*filled, strict=True)], constrain(first_logits, None, "batch", "vocab")

    def _decode(self, params, prefix, first_logits, suffix, rows, work, blocks):
        shape = (self.groups, self.rows)
        rows = rows._replace(active=rows.active & ~work.cancel)
        recent = self._chunk(BLOCK, self.rows)

        log = (
            *(jnp.zeros((BLOCKS, *shape), dtype) for dtype in (jnp.int32, jnp.int32, jnp.uint32, jnp.int32, jnp.bool_)),
            *(jnp.zeros((BLOCKS, *shape, BLOCK), dtype) for dtype in (jnp.int32, jnp.float32, jnp.float32)),
        )

        def unfinished(state):
            block, _, taken, _, rows, _ = state
            return (block < blocks) & (rows.active.any() | (taken < work.queue_length).any())

        def body(state):
            block, steps, taken, suffix, rows, log = state
            rows, taken = self._start(rows, taken, work, first_logits)
            begin = rows
            suffix, rows, (done, count, *drawn) = self._block(params, prefix, suffix, recent, rows, work)
            facts = (begin.age, begin.place, begin.sample, count, begin.active & ~rows.active, *drawn)
            log = [jax.lax.dynamic_update_index_in_dim(old, new, block, axis=0) for old, new in zip(log, facts, strict=True)]
            return block + 1, steps + done, taken, suffix, rows, tuple(log)

        zero = jnp.int32(0)
        state = (zero, zero, jnp.zeros(self.groups, jnp.int32), suffix, rows, log)
        _, steps, taken, suffix, rows, log = jax.lax.while_loop(unfinished, body, state)
        suffix = [[KeyValues(*map(_at_home, layer)) for layer in chunk] for chunk in suffix]
        replicated = jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), Log(*log, steps, taken, rows.active))
        return suffix, _rows_at_home(rows), replicated

    def _start(self, rows: Rows, taken, work: Work, first_logits) -> tuple[Rows, jax.Array]:
        """Gives idle rows the next samples of their group's queue."""
        idle = ~rows.active
        turn = jnp.cumsum(idle, axis=1) - 1 + taken[:, None]
        start = idle & (turn < work.queue_length[:, None])
        turn = jnp.minimum(turn, work.queue_place.shape[1] - 1)
        place = jnp.where(start, jnp.take_along_axis(work.queue_place, turn, axis=1), rows.place)
        sample = jnp.where(start, jnp.take_along_axis(work.queue_sample, turn, axis=1), rows.sample)
        first = jnp.where(place[..., None] == 0, first_logits[0][:, None], first_logits[1][:, None])
        logits = jnp.where(start[..., None], first, rows.logits)
        return Rows(logits, jnp.where(start, 0, rows.age), rows.active | start, place, sample), taken + start.sum(1)

    def _block(self, params, prefix, suffix, recent, rows: Rows, work: Work):
        """BLOCK steps of all rows (fewer when none is left); then their keys and values move to the suffix."""
        settings, (model, layers) = self.settings, self._model(params)
        at_place = lambda x_2xP: jnp.where(rows.place == 0, x_2xP[0][:, None], x_2xP[1][:, None])  # noqa: E731
        keys, lengths = row_keys(self.seed, at_place(work.problems), rows.sample), at_place(work.lengths)
        # Angles of all steps beforehand: in the loop, XLA would fuse their cosines into every layer and compute them anew.
        positions = (lengths + rows.age).reshape(-1) + jnp.arange(BLOCK)[:, None]
        angles = [x.reshape(BLOCK, -1, *x.shape[1:]) for x in model.angles(positions.reshape(-1, 1))]

        def going_on(state):
            step, *_, active, _, _ = state
            return (step < BLOCK) & active.any()

        def body(state):
            step, logits, recent, active, count, drawn = state
            age = rows.age + step
            token, *logprobs = choose(logits, row_uniforms(keys, age), settings)
            token = jnp.where(active, token, settings.end_ids[0])
            drawn = [
                jax.lax.dynamic_update_slice_in_dim(old, jnp.where(active, new, 0)[..., None].astype(old.dtype), step, axis=-1)
                for old, new in zip(drawn, (token, *logprobs), strict=True)
            ]
            count += active
            active &= ~jnp.isin(token, jnp.array(settings.end_ids)) & (age + 1 < settings.max_new_tokens)
            attend = decode(work.lengths, rows.place, rows.age, step)
            caches = [
                LayerCache([[chunk[i] for chunk in place] for place in prefix], [chunk[i] for chunk in suffix], recent[i])
                for i in range(len(layers))
            ]
            rotary = [jax.lax.dynamic_index_in_dim(x, step, keepdims=False) for x in angles]
            hidden, recent = model(token.reshape(-1, 1), None, attend, caches, layers, rotary)
            logits = constrain(model.logits(hidden[:, 0]).reshape(logits.shape), "batch", None, "vocab")
            return step + 1, logits, recent, active, count, drawn

        shape = rows.age.shape
        drawn = [jnp.zeros((*shape, BLOCK), dtype) for dtype in (jnp.int32, jnp.float32, jnp.float32)]
        state = (jnp.int32(0), rows.logits, recent, rows.active, jnp.zeros(shape, jnp.int32), drawn)
        steps, logits, recent, active, count, drawn = jax.lax.while_loop(going_on, body, state)
        by_layer = zip(*suffix, strict=True)
        settled = [settle(chunks, own, rows.age) for chunks, own in zip(by_layer, recent, strict=True)]
        suffix = [list(chunk) for chunk in zip(*settled, strict=True)]
        return suffix, Rows(logits, rows.age + count, active, rows.place, rows.sample), (steps, count, *drawn)


def _at_home(cache: jax.Array) -> jax.Array:
    """Pins a cache [P, K, ..., h] where it lives: groups over the batch shards, heads over the tensor axis."""
    return constrain(cache, "batch", "kv_heads", *[None] * (cache.ndim - 2))


def _rows_at_home(rows: Rows) -> Rows:
    return Rows(constrain(rows.logits, "batch", None, "vocab"), *(constrain(x, "batch", None) for x in rows[1:]))
