"""The network: loading it, its adapter, its loss, its generation loop."""
