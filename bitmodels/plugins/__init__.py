"""Plug-ins for other libraries, one package each: importing it registers it. Nothing here imports them."""
