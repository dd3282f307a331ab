"""`mindformers-glm doctor`: can models run on this machine, and what would help?"""
