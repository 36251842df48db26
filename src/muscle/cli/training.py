"""The verbs that train and evaluate: adapt, align, evaluate, update, status, tables, frontier, merge, push and demo."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from muscle.update.recipe import Recipe

# Flags that several verbs share. Bases and adapters are texts, since they may be hub ids.
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set one key of the recipe: training.epochs=3; repeatable."),
]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", metavar="FILE", help="Recipe whose settings hold [default: the paper's]")
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder that is written.")]
Jobs = Annotated[
    int, typer.Option(min=1, help="Stages at a time, each in a process with its own models, on one CPU thread or GPU.")
]
TeacherCache = Annotated[
    Literal["off", "memory", "disk"] | None,
    typer.Option(
        help="Where what the teachers say of the training texts is kept, computed once; off: they run at each step. "
        "[default: memory, or what the recipe says]"
    ),
]
Estimate = Annotated[
    bool, typer.Option("--estimate", help="Only tell what time, memory and disk it will take, and whether it fits.")
]
DryRun = Annotated[
    Literal["tiny"] | None,
    typer.Option(help="Run every stage on a little of the data, with tiny models of the same architectures."),
]


def adapt(
    base: Annotated[str, typer.Argument(help="Base: hub id, hub id@revision, or local folder.")],
    task: Annotated[str, typer.Argument(help="lm-eval task with a training split.")],
    out: Out,
    recipe: RecipeFile = None,
    set_: Set = None,
) -> None:
    """Train a task adapter: LoRA on all linear layers, with plain cross-entropy.

    The same command goes on from the last epoch where it was stopped. With several devices: accelerate launch -m
    muscle adapt ...
    """
    settings = _recipe(recipe, {**_models(base, base), ("tasks", task): {}}, set_)
    from muscle.update.verbs import adapt

    adapt(settings, task, out)


def align(
    task: Annotated[str, typer.Argument(help="lm-eval task with a training split.")],
    old: Annotated[str, typer.Option(metavar="BASE", help="Old base: hub id, hub id@revision, or local folder.")],
    new: Annotated[str, typer.Option(metavar="BASE", help="New base.")],
    out: Out,
    old_adapter: Annotated[
        str | None, typer.Option(metavar="ADAPTER", help="Its task adapter [default: the base does the task itself]")
    ] = None,
    new_adapter: Annotated[
        str | None,
        typer.Option(metavar="ADAPTER", help="That of the new base, where training starts [default: as above]"),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="auto: the best of several on the held-out items, which tries the alignment as given last, if the "
            "budget reaches it; muscle: the paper's; or one of the recipe. "
            "[default: auto, or the recipe's only one]",
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            min=1, max=1e6, help="What auto may spend, in times the cost of training one alignment. [default: 4]"
        ),
    ] = None,
    recipe: RecipeFile = None,
    set_: Set = None,
    teacher_cache: TeacherCache = None,
) -> None:
    """Train a compatibility adapter for the new base, towards the old and the new task model.

    The result is an ordinary PEFT adapter: no old model at inference. The same command goes on where it was stopped.
    """
    given = {**_models(old, new, {task: old_adapter}, {task: new_adapter}), ("tasks", task): {}}
    given |= _kept(teacher_cache)
    if recipe is None:
        from muscle.update.alignment_settings import KNOWN_METHODS

        given |= {("methods", "auto"): KNOWN_METHODS["auto"]}
    settings = _recipe(recipe, given, set_)
    from muscle.update.verbs import align

    align(settings, task, method, out, budget)


def evaluate(
    base: Annotated[str, typer.Argument(help="Base: hub id, hub id@revision, or local folder.")],
    task: Annotated[list[str], typer.Argument(help="lm-eval tasks.")],
    out: Out,
    adapter: Annotated[str | None, typer.Option(help="Task adapter: local folder or hub id.")] = None,
    draws: Annotated[int | None, typer.Option(min=1, help="Sample each item so often.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score the first items only.")] = None,
    recipe: RecipeFile = None,
    set_: Set = None,
) -> None:
    """Evaluate a task model through lm-eval, and write the logs that `muscle compare` reads."""
    given = _models(base, base, new_adapters=dict.fromkeys(task, adapter))
    given |= {("tasks", name): {} for name in task}
    given |= {("evaluation", key): value for key, value in (("draws", draws), ("limit", limit)) if value is not None}
    settings = _recipe(recipe, given, set_)
    from muscle.update.verbs import evaluate

    evaluate(settings, task, out)


def update(
    recipe: Annotated[Path, typer.Argument(help="Recipe: a YAML file.")],
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the run [default: runs/<recipe>]")] = None,
    jobs: Jobs = 1,
    dry_run: DryRun = None,
    outdated: Annotated[
        Literal["refuse", "redo", "keep"],
        typer.Option(help="What becomes of stages that another version of muscle, torch, ... has done."),
    ] = "refuse",
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER", help="Upload the results, private, as OWNER/RUN-TASK-METHOD.")
    ] = None,
    teacher_cache: TeacherCache = None,
    estimate: Estimate = False,
) -> None:
    """Run a whole model update: adapters, alignment, controls, evaluation, tables; several tasks.

    Whatever stops it, the same command goes on from there; after a change of the recipe only what depends on it is
    run again.
    """
    settings = _recipe(recipe, _kept(teacher_cache), set_)
    from muscle.update.run import print_update_estimate, run_update, stand_in

    name = recipe.stem
    if dry_run:
        settings, name = stand_in(settings), f"{name}-dry-run"
    root = out or Path("runs") / name
    if estimate:
        _end(print_update_estimate(settings, root, jobs, _console(), outdated))
    run_update(settings, root, jobs, _console(), outdated, push_to_hub)
    if dry_run:
        print("This was a dry run: every stage is real, but such small models make the figures mean nothing.")


def status(run: Annotated[Path, typer.Argument(help="Folder of a run.")]) -> None:
    """Tell which stages of a run are done."""
    _require()
    from muscle.update.run import print_status

    print_status(run, _console())


def tables(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write them as Markdown.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write them as CSV, with intervals.")] = None,
    pictures: Annotated[Path | None, typer.Option(metavar="DIR", help="Also draw figures 4 and 5 as SVG.")] = None,
) -> None:
    """Print the paper's tables 4 to 7 and 9 and its figures 4 and 5 for some runs, its own figures beside."""
    _require()
    from muscle.update.report.pictures import write_pictures
    from muscle.update.report.study import collect
    from muscle.update.report.tables import print_tables, write_csv, write_markdown

    results = collect(runs)
    if markdown:
        write_markdown(results, markdown)
    if csv:
        write_csv(results, csv)
    drawn = write_pictures(results, pictures) if pictures else []
    console = _console()
    print_tables(results, console)
    for path in (markdown, csv, *drawn):
        if path:
            console.print(f"wrote {path}", soft_wrap=True)


def frontier(
    run: Annotated[Path, typer.Argument(help="Folder of a run of update or demo.")],
    points: Annotated[
        str, typer.Option(metavar="A,B,...", help="Shares a of the old model: 0 is only new, 1 only old.")
    ] = "0,0.25,0.5,0.75,1",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set one key of alignment: temperature=1; repeatable."),
    ] = None,
    jobs: Jobs = 1,
    split: Annotated[
        Literal["test", "validation"], typer.Option(help="Items that are scored; choose a by validation.")
    ] = "test",
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page with the plane.")] = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw the plane as SVG.")] = None,
) -> None:
    """Train compatibility adapters between "only new" and "only old", and draw what each trades.

    They are further stages of the run, beside its own, which are kept; the same command goes on where it was stopped.
    """
    _require()
    from muscle.demo.run import demo_frontier, is_demo
    from muscle.update.report.frontier import read_points, run_frontier, update_frontier

    found = demo_frontier(run) if is_demo(run) else update_frontier(run)
    run_frontier(found, read_points(points), set_ or (), split, jobs, _console(), html=html, svg=svg)


def merge(
    base: Annotated[str, typer.Argument(help="Base: hub id, hub id@revision, or local folder.")],
    adapter: Annotated[str, typer.Argument(help="Adapter: local folder or hub id.")],
    out: Out,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Also load pickled weights.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")
    ] = False,
) -> None:
    """Write base and adapter as one checkpoint that needs no PEFT, for servers that take no adapters."""
    _require()
    from muscle.update.hub import merge
    from muscle.update.recipe import Base, TaskModel

    loaded = Base(base=base, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    merge(TaskModel(base=loaded, adapter=adapter), out)
    print(f"wrote {out}")


def push(
    adapter: Annotated[Path, typer.Argument(help="Folder of an adapter with a model card.")],
    repository: Annotated[str, typer.Argument(help="Repository of the hub: owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Where it is new, make it private, not public.")] = False,
) -> None:
    """Upload an adapter with its model card to the Hugging Face hub."""
    _require()
    from muscle.update.hub import push

    print(push(adapter, repository, private=private))


def demo(
    seed: Annotated[
        int, typer.Option(min=0, max=10**8, help="Decides the world, the data, and every initial weight.")
    ] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Every stage at a tenth of the size, to see it run.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run [default: one below muscle-demo]")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Worker processes; each takes about 0.7 GB.")] = 2,
    estimate: Estimate = False,
) -> None:
    """Run one whole model update in a small world: bases, adapters, alignment, controls, table.

    Ctrl-C loses nothing but the stage under way: the same command goes on from there.
    """
    _require()
    from muscle.demo.run import print_demo_estimate, run_demo

    if estimate:
        _end(print_demo_estimate(seed, quick, out, jobs, _console()))
    run_demo(seed, quick, out, jobs, _console())


def _models(
    old: str,
    new: str,
    old_adapters: Mapping[str, str | None] | None = None,
    new_adapters: Mapping[str, str | None] | None = None,
) -> dict[tuple[str, ...], object]:
    """The models that a single verb's arguments name, in place of a recipe's, whose controls it does not train."""
    given: dict[tuple[str, ...], object] = {("controls",): []}
    for side, base, adapters in (("old", old, old_adapters), ("new", new, new_adapters)):
        given |= {(side, "base"): base, (side, "scratch"): None, (side, "adapters"): dict(adapters or {})}
    return given


def _kept(teacher_cache: str | None) -> dict[tuple[str, ...], object]:
    """What --teacher-cache says, in place of the recipe's key."""
    return {("alignment", "teacher_cache"): teacher_cache} if teacher_cache else {}


def _recipe(file: Path | None, given: Mapping[tuple[str, ...], object], overrides: Sequence[str] | None) -> "Recipe":
    """The recipe of a file, or of nothing, with what the verb's arguments say, and then what --set says."""
    _require()
    from muscle.update.recipe_file import make_recipe, read_recipe

    if file is None:
        return make_recipe({}, overrides or (), given)
    return read_recipe(file, overrides or (), given)


def _end(fits: bool) -> NoReturn:
    """End after an estimate: with code 2 where it does not fit."""
    raise typer.Exit(0 if fits else 2)


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False, emoji=False, markup=False)


def _require() -> None:
    from muscle.update import quiet_libraries, require_training_stack

    require_training_stack()
    quiet_libraries()


VERBS = (adapt, align, evaluate, update, status, tables, frontier, merge, push, demo)
