"""`course studio`: a page on this machine to draw with the models of the course: words, drawn edges, LoRAs, noise that clears.

    catalogue.py    what there is to choose: models, LoRAs, ControlNets, and which of them fit together
    asked.py        what a form said: checked, each mistake at its field; and the same as a `course sample` command
    painter.py      draws what was asked, with `course.sample`
    jobs.py         one job at a time in a thread of its own, a short queue, progress, cancelling
    guard.py        who may talk to the server: this machine, this page, whoever has the token
    server.py       the addresses, and the start
"""
