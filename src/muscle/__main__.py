"""`python -m muscle`, and `accelerate launch -m muscle` for training on several devices."""

from muscle.cli import main

if __name__ == "__main__":
    main()
