"""Everything that makes glm4-mini, the small trained checkpoint of mindformers_glm.

Read in this order: `facts` and `sentences` (what it knows), `tasks` and `skills` (what it
practises), `corpus` (the mixture and the held-out split), `tokenizer`, `batches`, `training`,
`score`, and `asset` (the folder that ships).
"""
