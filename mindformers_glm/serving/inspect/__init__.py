"""`mindformers-glm inspect`: what a checkpoint folder is, without loading it."""
