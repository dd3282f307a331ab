"""`mindformers-glm webui`, and web_demo.py: conversations in the browser."""
