"""A model and its adapters for several people: the loop, HTTP, the page, the chat."""
