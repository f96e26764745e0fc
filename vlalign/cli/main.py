"""The command line. Rooms are imported inside their command, so that help is quick."""

import os
import sys

import typer

from vlalign.cli import (
    data,
    direction,
    evaluate,
    judge,
    methods,
    mine,
    name,
    pipeline,
    plan,
    push,
    quantize,
    recipes,
    rerank,
    soup,
    synthesize,
    train,
    triplets,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Vision-language alignment and reranking, described by recipes.",
)
app.command("train")(train.train)
app.command("plan")(plan.plan)
app.command("eval")(evaluate.evaluate)
app.command("mine")(mine.mine)
app.command("judge")(judge.judge)
app.command("rerank")(rerank.rerank)
app.command("synthesize")(synthesize.synthesize)
app.command("triplets")(triplets.triplets)
app.command("name")(name.name)
app.command("direction")(direction.direction)
app.command("pipeline")(pipeline.pipeline)
app.command("soup")(soup.soup)
app.command("quantize")(quantize.quantize)
app.command("push")(push.push)
app.add_typer(recipes.app, name="recipes")
app.add_typer(methods.app, name="methods")
app.add_typer(data.app, name="data")


def main() -> None:
    """Run a command. What the user can put right is told on standard error, with exit code 2."""
    try:
        app()
    except ValueError as error:
        from vlalign.registry import UnknownName
        from vlalign.types import RecipeError, UserError

        if not isinstance(error, UserError | UnknownName):
            raise
        of_all = isinstance(error, RecipeError | UnknownName)  # every process of a machine meets it
        if not of_all or os.environ.get("LOCAL_RANK", "0") == "0":
            print(error, file=sys.stderr)
        sys.exit(2)
