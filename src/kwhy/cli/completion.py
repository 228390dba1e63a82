"""``kwhy completion bash|zsh``: prints a completion script, made from the verbs' own parsers.

``source <(kwhy completion bash)`` completes verbs, options, their choices and file names.
"""

import argparse
import shlex
from importlib import import_module

HELP = "print a completion script for a shell"

_BASH = """\
_kwhy() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} words=
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W {verbs} -- "$cur"))
        return
    fi
    case "${{COMP_WORDS[1]}} $prev" in
{choices}
    esac
    if [[ -z $words && ( $cur == -* || $COMP_CWORD -eq 2 ) ]]; then
        case ${{COMP_WORDS[1]}} in
{options}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o bashdefault -o default -F _kwhy kwhy
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shell."""
    parser.add_argument("shell", choices=("bash", "zsh"))


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    if args.shell == "zsh":
        print("autoload -U +X compinit bashcompinit && compinit && bashcompinit")
    print(script(), end="")
    return 0


def script() -> str:
    """The completion script for bash (zsh runs it too, with ``bashcompinit``)."""
    from kwhy.cli.main import available_verbs

    verbs = list(available_verbs())
    options, choices = [], []
    for verb in verbs:
        parser = argparse.ArgumentParser(prog=f"kwhy {verb}", allow_abbrev=False)
        import_module(f"kwhy.cli.{verb}").add_arguments(parser)
        words: list[str] = []
        for action in parser._actions:
            offered = [str(choice) for choice in action.choices or ()]
            if action.option_strings:
                words += action.option_strings
            else:
                words += offered
                continue
            if offered:
                pattern = "|".join(shlex.quote(f"{verb} {name}") for name in action.option_strings)
                choices.append(f"        {pattern}) words={shlex.quote(' '.join(offered))} ;;")
        options.append(f"            {verb}) words={shlex.quote(' '.join(words))} ;;")
    return _BASH.format(
        verbs=shlex.quote(" ".join(verbs)),
        choices="\n".join(choices) or "        *) ;;",
        options="\n".join(options) or "            *) ;;",
    )
