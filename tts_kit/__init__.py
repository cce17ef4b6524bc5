"""tts_kit: teach a token-based text-to-speech model one new voice, and know whether it worked.

The rooms, from the ground up; each imports only from those before it:

    problem.py     the one error meant for people: seen, wanted, what to do
    run.py         a run's folders; writing that is whole or not at all
    physics.py     rates, codebooks and ids, read from the checkpoint
    recipe.py      everything a run can be told, with its defaults
    runtime.py     device, dtype and the reason
    hub.py         names on the model hub, and putting a folder there without harm
    checkpoint.py  opening a base: quietly, safetensors only, errors for people
    pages.py       what the pages have in common
    audio.py       the only room that knows waves
    text.py        one normalisation for training and speaking
    data/          recordings, or clips with transcripts -> utterances
    tokens/        utterances -> codes -> the sequence CSM reads
    watermark.py   an inaudible mark in machine-made speech, and finding it
    model/         the base, the adapter, the loss, the generation loop
    judging/       clips -> words, voice, naturalness, and how sure they are
    tuning/        codes -> adapter
    speech/        adapter -> audio
    comparison/    every arm, and the page to listen to
    release/       what leaves the house: adapter or merged weights, with their card
    pretrain/      how a small model is made from nothing: speech, codec, network
    story.py       the stages in one call
    doctor/        what would stop a run on this machine, and what to do
    options.py     what the verbs can be told
    verbs.py       what each verb does
    volume.py      a run's folder on a volume in the cloud, there and back
    modal_app.py   the cloud door
    __main__.py    the verbs
"""

import os
import sys
import warnings

# OpenMP's threads wait by spinning: on a machine that also does something else a step then takes up to 60 times as long
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# tqdm says this in every notebook without ipywidgets; its text bar is as good
warnings.filterwarnings("ignore", message="IProgress not found")
if not sys.stderr.isatty():  # a log or a notebook keeps every state of a bar: fewer of them
    os.environ.setdefault("TQDM_MININTERVAL", "1" if "ipykernel" in sys.modules else "10")
