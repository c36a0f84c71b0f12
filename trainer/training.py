"""One stage's epochs: each trained, evaluated and recorded, with a checkpoint after it and, now and then, within it."""

import time
from dataclasses import replace
from functools import partial
from math import isfinite

from trainer import engine, lesson, memory, report, schedules, snapshots
from trainer.engine import Answers, Trained
from trainer.errors import Diverged
from trainer.history import Cycle, Epoch, best_cycle, overfits
from trainer.lesson import Lesson
from trainer.plan import Train
from trainer.run import Run
from trainer.stage import Stage
from trainer.state import State
from trainer.trainee import Trainee


def train(run: Run, state: State, step: Train) -> State:
    """The state after the stage's remaining epochs.

    The optimizer is new, as in fast.ai 0.7: no momentum is carried from one stage to the next.
    """
    stage = step.stage
    run.network.freeze_to(stage.freeze_to, stage.freeze_norm)
    pace = state.paces[step.stage_index]
    pace.lay_out(run.network.module)
    trainee = Trainee(run.network, stage, run.rates_of(step.stage_index, state), pace, run.team)
    if state.step_tensors:
        trainee.restore(state.step_tensors, state.scaler)
    taught = lesson.of(run, state, step, trainee)
    while state.epoch < stage.total_epochs and not (stage.until_overfitting and overfits(state.cycles)):
        with memory.explained(run, taught):
            state = _epoch(taught, state)
        run.keeper.save(state)
        run.keeper.after_step(partial(replace, state))
    return _ended(taught, state)


def _epoch(taught: Lesson, state: State) -> State:
    """The state after the epoch that it is in, or at the start of."""
    run, stage, trainee, epoch = taught.run, taught.stage, taught.trainee, state.epoch
    started = time.perf_counter()
    if state.batch == 0:
        trainee.average.zero_()
    parts = taught.training_batches(epoch)

    def at(batch: int) -> State:
        tensors, scaler = trainee.tensors(), trainee.scaler.state_dict()
        return replace(state, batch=batch, step_tensors=tensors, scaler=scaler)

    def after_batch() -> None:
        run.keeper.after_step(lambda: at(len(parts)))

    rate_at = partial(_rate_share, stage, epoch, len(parts))
    trained = engine.train_epoch(
        trainee,
        taught.shown(epoch, parts[state.batch :]),
        partial(taught.loss_of, epoch),
        rate_at,
        after_step=lambda batch: run.keeper.after_step(lambda: at(batch)),
        sizes=[len(part) for part in parts[state.batch :]],
        first=state.batch,
        accumulate=stage.accumulate,
    )
    answers = taught.evaluated("valid", after_batch)
    if not isfinite(trained.loss) or not isfinite(answers.loss):
        what = f"The loss is no longer a number in stage {stage.name!r}, epoch {epoch + 1}"
        raise Diverged(what, "Lower the learning rate, to a tenth at first: --set lr=…")
    cycles = state.cycles
    if epoch + 1 in stage.cycle_ends() and (stage.until_overfitting or stage.snapshots):
        train_loss = taught.evaluated("train", after_batch).loss if stage.until_overfitting else trained.loss
        cycles = (*cycles, _cycle(taught, len(cycles) + 1, epoch + 1, train_loss, answers.loss))
    measured = _measured(taught, state, trained, answers, len(parts), rate_at(0), time.perf_counter() - started)
    report.epoch(run.rundir, measured)
    if cycles != state.cycles and stage.until_overfitting:
        report.cycle(run.rundir, stage, cycles)
    after = at(0)
    return replace(after, epoch=epoch + 1, cycles=cycles, history=(*state.history, measured))


def _cycle(taught: Lesson, number: int, epoch: int, train_loss: float, valid_loss: float) -> Cycle:
    """The cycle that has just ended, its weights kept."""
    name = snapshots.write(taught.run.rundir, taught.stage_index, number, taught.trainee.kept_weights())
    return Cycle(number=number, epoch=epoch, train_loss=train_loss, valid_loss=valid_loss, snapshot=name)


def _ended(taught: Lesson, state: State) -> State:
    """The network as the stage leaves it: its last weights, their average, or its best cycle's."""
    run, stage = taught.run, taught.stage
    taught.trainee.take_average()
    if stage.until_overfitting:
        best = best_cycle(state.cycles)
        snapshots.load(run.rundir, best.snapshot, run.network.module)
        chosen = f"stage {stage.name!r}: cycle {best.number} of {len(state.cycles)}, by its validation loss"
        state = replace(state, selected_by=(*state.selected_by, chosen))
    if stage.snapshots:
        state = replace(state, snapshots=(*state.snapshots, *(cycle.snapshot for cycle in state.cycles)))
    return state


def _measured(
    taught: Lesson, state: State, trained: Trained, answers: Answers, steps: int, rate_share: float, seconds: float
) -> Epoch:
    run, stage = taught.run, taught.stage
    scores = run.score(answers.probabilities, answers.targets)
    rates = schedules.group_rates(run.rates_of(taught.stage_index, state), stage.spread, run.network.group_count)
    return Epoch(
        stage=stage.name,
        stage_index=taught.stage_index,
        epoch=state.epoch + 1,
        epochs=stage.total_epochs,
        steps=steps,
        train_loss=trained.loss,
        valid_loss=answers.loss,
        accuracy=scores.pop("accuracy"),
        scores=scores,
        lr=rates[-1] * rate_share,
        images_per_s=trained.images_per_s,
        data_wait_fraction=trained.data_wait_fraction,
        peak_memory_bytes=engine.peak_memory_bytes(run.torch_device),
        seconds=seconds,
    )


def _rate_share(stage: Stage, epoch: int, steps_per_epoch: int, batch: int) -> float:
    """The share of the highest learning rate at a batch of an epoch of the stage."""
    first_cycle = stage.first_cycle_epochs * steps_per_epoch
    return schedules.share(stage.schedule, epoch * steps_per_epoch + batch, first_cycle, stage.cycle_mult)
