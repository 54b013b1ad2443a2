"""What one rank does in a training run: build or restore the roles, fit, export."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from cluster import storage
from cluster.errors import DataError
from cluster.settings import make
from trainers import checkpoint, model, sequence
from trainers.architecture import expert_width, head_dim
from trainers.batch import PackedRows
from trainers.checkpoint import Place
from trainers.engine import Engine, EngineSettings
from trainers.fit import Length, fit
from trainers.log import Log
from trainers.memory import Estimate, Footprint, estimate, peak
from trainers.mixture import Mixture, Part
from trainers.objective import Objective, Start, Weighed
from trainers.ranks import Ranks
from trainers.recipe import TrainRecipe, algorithm, from_mapping
from trainers.roles import Frozen, Role
from trainers.schedule import Schedule

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12}
"""Dense bf16 matrix FLOP/s by the vendors' data sheets, by part of the device name."""


def run(raw: dict[str, Any], out: str, ranks: Ranks, worker: Any) -> dict[str, Any]:
    """Train one rank to the end of the recipe. Returns its results as plain values."""
    recipe = from_mapping(raw)
    worker.beat.at("build", 0)
    gc.collect()  # this process may have trained another run before, whose models lie in cycles
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ranks.device)
    old = origin(recipe)
    data = open_data(recipe, old[0] if old else None)
    schedule = make(Schedule, recipe.rates(old[0].recipe if old else None), "schedule")
    given = [PackedRows(folder) for folder in recipe.folders()]  # without what is replayed
    steps = recipe.total_steps(sum(one.rows for one in given), sum(one.tokens for one in given))
    schedule.check(steps)
    shape = old[0].shape if old else {"model": recipe.model, "start_from": recipe.start_from}
    lm = new_model(shape, data, recipe.seed)
    engine_settings = make(EngineSettings, recipe.engine, "engine")
    if engine_settings.sequence > 1:
        heads = lm.config.num_attention_heads
        sequence.check(engine_settings.sequence, world=ranks.world, heads=heads, seq_len=data.seq_len)
        ranks = replace(ranks, sequence=engine_settings.sequence)
    if hasattr(lm, "score") and recipe.trainer != "reward":
        raise DataError(
            f"{shape['start_from']}: a reward model, which predicts no tokens; only trainer: reward takes it"
        )
    parameters = sum(p.numel() for p in lm.parameters())
    flops = _flops(lm, parameters, data.seq_len)
    trainer = algorithm(recipe.trainer)
    settings = make(trainer.SETTINGS, recipe.objective, "objective")
    start = Start(recipe, data, ranks, engine_settings, lm)
    roles: dict[str, Role] = trainer.roles(settings, start)
    trained = {name: role for name, role in roles.items() if isinstance(role, Engine)}
    folder = recipe.checkpoints or os.path.join(out, "checkpoints")
    found = checkpoint.latest(folder)
    place = Place(0, 0, 0, recipe=raw, data=described(data), shape=shape)
    if found:
        worker.beat.at("restore", found[0].step)
        stands = checkpoint.load(found[1], trained, ranks)
        place = replace(place, step=stands.step, cursor=stands.cursor, tokens=stands.tokens, state=stands.state)
    elif old and recipe.continue_:
        worker.beat.at("restore", 0)
        checkpoint.load(old[1], trained, ranks, moments=recipe.continue_.moments)
        if recipe.continue_.rows == "next":
            place = replace(place, cursor=old[0].cursor, tokens=old[0].tokens)
    ranks.barrier()
    objective = trainer.objective(settings, replace(start, cursor=place.cursor, state=place.state))
    length = Length(
        steps,
        schedule,
        recipe.validate_every,
        recipe.checkpoint_every,
        recipe.save,
        recipe.save_at,
        recipe.batch_rows * data.seq_len,
        flops,
        peak_flops(ranks.device),
    )
    log = worker.log = Log(out, place.step) if ranks.rank == 0 else None
    if log:
        accumulates = recipe.batch_rows > recipe.micro_rows * ranks.data_world
        expected = expected_memory(objective, roles, recipe.micro_rows, data.seq_len, ranks, accumulates=accumulates)
        share = trained["policy"].trained_parameters() / parameters
        about = {"parameters": parameters, "trained_share": share, "memory_expected_gib": expected / 2**30}
        log.write({"step": place.step, **about})
    writer = checkpoint.Writer(folder, ranks, keep=recipe.keep, keep_every=recipe.keep_every)
    try:
        steps_done = fit(objective, roles, length, ranks, place, writer, worker.beat, log)
    finally:
        objective.close()
    export_path = None
    if recipe.export:
        worker.beat.at("export", steps)
        export_path = os.path.join(out, "model")
        if recipe.peft is None and recipe.prune is None:
            write_export(trained["policy"], trained["policy"].module.lm, data.tokenizer, export_path, ranks)
        else:
            export_path = write_tuned(trained["policy"], recipe, shape, data, out, ranks)
    for role in trained.values():
        role.close()
    peak = torch.cuda.max_memory_allocated() if ranks.device.type == "cuda" else None
    if log:
        if peak:
            log.write({"step": steps, "memory_peak_gib": peak / 2**30})
        log.close()
    return {
        "steps_done": steps_done,
        "steps": steps,
        "parameters": parameters,
        "export": export_path,
        "peak_memory": peak,
    }


def origin(recipe: TrainRecipe) -> tuple[Place, str] | None:
    """The checkpoint that `continue:` names: its description and its folder. Raises DataError when there is none."""
    if recipe.continue_ is None:
        return None
    folder = recipe.continue_.run
    if storage.exists(storage.join(folder, "checkpoint.json")):
        return checkpoint.read_place(folder), folder
    found = checkpoint.published(storage.join(folder, "checkpoints")) or checkpoint.published(folder)
    if not found:
        raise DataError(
            f"continue: no checkpoint in {folder}; run: names a training run, its checkpoints, or one of them"
        )
    kinds = [place.kind for place, _ in found]
    if isinstance(recipe.continue_.at, int):
        chosen = [entry for entry in found if entry[0].step == recipe.continue_.at]
        if not chosen:
            raise DataError(f"continue: {folder} has no step {recipe.continue_.at}, only {[p.step for p, _ in found]}")
        return chosen[-1]
    if recipe.continue_.at not in kinds:
        raise DataError(
            f"continue: {folder} has no '{recipe.continue_.at}' checkpoint, only {sorted(set(kinds))}; a corner is "
            "saved by runs with schedule.shape: wsd"
        )
    return [entry for entry in found if entry[0].kind == recipe.continue_.at][-1]


def open_data(recipe: TrainRecipe, old: Place | None) -> PackedRows | Mixture:
    """The rows of the run: one data set, or a mixture, with old rows replayed when the recipe continues a run."""
    if old is not None and recipe.continue_ is not None and recipe.continue_.rows == "next":
        parts = [Part(PackedRows(folder), share, start) for folder, share, start in old.data["parts"]]
        return Mixture(parts) if len(parts) > 1 else parts[0].data
    parts = [Part(PackedRows(folder), share) for folder, share in recipe.folders().items()]
    if old is not None and recipe.continue_ is not None:
        before, now = old.data["tokenizer_hash"], parts[0].data.about.get("tokenizer_hash")
        if before != now:
            raise DataError(
                f"continue: the old run's tokenizer is {before}, the new data's {now}; pack them with the old tokenizer"
            )
        if recipe.continue_.replay:
            past = Mixture([Part(PackedRows(folder), share, start) for folder, share, start in old.data["parts"]])
            whole, past_whole = sum(part.share for part in parts), sum(part.share for part in past.parts)
            scale = whole * recipe.continue_.replay / (1 - recipe.continue_.replay) / past_whole
            for part, row in zip(past.parts, past.next_rows(old.cursor), strict=True):
                parts.append(Part(part.data, part.share * scale, row))
    return parts[0].data if len(parts) == 1 else Mixture(parts)


def described(data: PackedRows | Mixture) -> dict[str, Any]:
    """What a checkpoint remembers of its data: folders, shares and first rows, and whose tokens they are."""
    parts = data.parts if isinstance(data, Mixture) else [Part(data, 1.0)]
    return {
        "parts": [[part.data.folder, part.share, part.start] for part in parts],
        "fingerprints": [part.data.about.get("fingerprint") for part in parts],
        "tokenizer_hash": data.about.get("tokenizer_hash"),
    }


def new_model(shape: dict[str, Any], data: PackedRows | Mixture, seed: int) -> Any:
    """The transformers model of a shape ({"model": settings, "start_from": folder or None}), in float32."""
    if shape["start_from"] is None:
        settings = make(model.ModelSettings, shape["model"], "model")
        return model.build(
            settings,
            vocab_size=data.vocab_size,
            seq_len=data.seq_len,
            seed=seed,
            pad=data.about["pad_id"],
            eos=data.about["eos_id"],
        )
    lm: Any = model.load(shape["start_from"])
    if lm.config.vocab_size < data.vocab_size:
        raise DataError(
            f"{shape['start_from']}: vocabulary of {lm.config.vocab_size}, the data need {data.vocab_size}; "
            "pack the data with this model's tokenizer"
        )
    return lm


def write_export(engine: Engine, lm: Any, tokenizer: str, folder: str, ranks: Ranks) -> None:
    """Export a trained role at any time. A collective; rank 0 writes."""
    state = {}
    for name, value in engine.weights():
        if ranks.rank == 0:
            state[name] = value.to("cpu", copy=True)
    if ranks.rank == 0:
        model.export(lm, state, tokenizer, folder)
    ranks.barrier()


def write_tuned(
    engine: Engine, recipe: TrainRecipe, shape: dict[str, Any], data: PackedRows | Mixture, out: str, ranks: Ranks
) -> str | None:
    """Export a tuned role: OUT/adapter with what was trained, and OUT/model where a plain model has the same outputs.

    Returns the folder of the plain model, else that of the adapter. A collective; rank 0 writes.
    """
    from trainers.peft import tune as peft
    from trainers.prune import magnitude

    state = {}
    for name, value in engine.weights():
        if ranks.rank == 0:
            state[name] = value.to("cpu", copy=True)
    path = os.path.join(out, "model")
    plain: Any = None
    if ranks.rank == 0:
        # on a model of its own: the trained one may be in parts, or on a GPU with no room left
        lm = new_model(shape, data, recipe.seed)
        if recipe.trainer == "reward":
            from trainers.reward import PackedReward, classifier

            packed: model.PackedLM = PackedReward(classifier(lm, None, recipe.seed))
        else:
            packed = model.PackedLM(lm)
        if recipe.peft is not None:
            method = peft.method_of(recipe.peft)
            peft.attach(method, packed, recipe.seed)
            peft.put(packed, state, out, whole=True)
            peft.save(method, packed, state, os.path.join(out, "adapter"), shape["start_from"])
            if method.mergeable() is None:
                plain = peft.merged(method, packed)
            else:
                path = os.path.join(out, "adapter")
        else:
            magnitude.attach(packed, make(magnitude.Magnitude, recipe.prune, "prune"))
            peft.put(packed, state, out, whole=True)
            plain = magnitude.merge(packed)
        if plain is not None:
            plain.to(engine.dtype)
            model.export(plain, dict(plain.named_parameters()), data.tokenizer, path)
    ranks.barrier()
    return path


def expected_memory(
    objective: Objective, roles: Mapping[str, Role], micro_rows: int, seq_len: int, ranks: Ranks, *, accumulates: bool
) -> float:
    """Bytes that one device will need at its peak: trained roles, frozen ones, what samples."""
    print_ = objective.footprint(roles, micro_rows * seq_len) if isinstance(objective, Weighed) else None
    estimates, beside = [], print_.beside if print_ else 0.0
    for name, role in roles.items():
        if isinstance(role, Frozen):
            beside += sum(value.numel() * value.element_size() for value in role.model.parameters())
        elif isinstance(role, Engine):
            estimates.append(_estimated(role, print_, micro_rows, seq_len, ranks, name == "policy", accumulates))
    return peak(estimates, beside)


def _estimated(
    role: Engine, print_: Footprint | None, micro_rows: int, seq_len: int, ranks: Ranks, speaks: bool, accumulates: bool
) -> Estimate:
    """Of one trained role; only one that `speaks` has logits."""
    settings, lm = role.settings, role.module.lm
    config = lm.config
    width = print_.width if print_ and print_.width else seq_len
    return estimate(
        parameters=sum(getattr(p, "ds_numel", p.numel()) for p in lm.parameters()),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        kv=config.num_key_value_heads * head_dim(config),
        ffn=expert_width(config) * (getattr(config, "num_experts_per_tok", None) or 1),
        vocabulary=config.vocab_size,
        tokens=(print_.tokens if print_ and print_.tokens else micro_rows * seq_len) // ranks.sequence,
        zero=settings.zero,
        world=ranks.world,
        bf16=role.compute_dtype == torch.bfloat16,
        recompute=settings.recompute,
        compiled=settings.compile,
        accumulates=accumulates,
        live=2 * settings.bucket,
        offload_optimizer=settings.offload_optimizer,
        offload_weights=settings.offload_weights,
        trained=role.trained_parameters(),
        loss_bytes=None if print_ is None else print_.loss if speaks else 0.0,
        masks=width if role.module.attention == "sdpa" else 0,
    )


def peak_flops(device: torch.device) -> float:
    """Dense bf16 peak of the device, 0 when it is not known."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), 0.0)


def _flops(lm: Any, parameters: int, seq_len: int) -> float:
    config = lm.config
    table = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    if getattr(config, "num_local_experts", None):  # a token visits some of them
        idle = config.num_local_experts - config.num_experts_per_tok
        parameters -= config.num_hidden_layers * 3 * config.hidden_size * expert_width(config) * idle
    return model.flops_per_token(parameters, table, config.num_hidden_layers, config.hidden_size, seq_len)
