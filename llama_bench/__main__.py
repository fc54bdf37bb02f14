"""`python -m llama_bench`."""

from __future__ import annotations

from llama_bench.cli.main import main

if __name__ == "__main__":
    main()
