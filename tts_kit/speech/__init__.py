"""Adapter -> audio: `speak` says a text whole, `stream` while it is made, `voices` has several on one base, and `serve` lets
programs ask, over `server/`."""
