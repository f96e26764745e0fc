"""`python -m vlalign`, for `accelerate launch -m vlalign train RECIPE`."""

from vlalign.cli.main import main

if __name__ == "__main__":
    main()
