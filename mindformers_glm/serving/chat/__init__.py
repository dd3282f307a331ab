"""`mindformers-glm chat`, and `main.py --mode cli_demo`: conversations on a terminal."""
