"""`eca-hub models`: list the networks that can be built."""

import json

from eca_hub.commandline import CommandParser


def main(argv: list[str]) -> int:
    """Print the names that `create_model` takes, with their parameters."""
    parser = CommandParser("models", "List the networks that can be built.")
    parser.add_argument("pattern", nargs="?", default="*", help="Shell-style, such as 'eca*'.")
    parser.add_argument("--json", action="store_true", help="Print a JSON list.")
    args = parser.parse_args(argv)

    import torch

    from eca_hub.models.build import create_model, list_models

    rows = []
    for name in list_models(args.pattern):
        with torch.device("meta"):
            model = create_model(name)
        rows.append({"name": name, "parameters": sum(parameter.numel() for parameter in model.parameters())})
    if args.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print(f"{row['name']:<24} {row['parameters']:>12,} parameters")
    if not rows:
        print(f"No network is called {args.pattern!r}. All names: eca-hub models")
    return 0
