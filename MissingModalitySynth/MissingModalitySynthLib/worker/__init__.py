"""The worker: a process of its own that computes, so that torch never runs in the process that shows the images.

::

    client (Slicer's process, no torch)            worker process: python -m MissingModalitySynthLib.worker
    client.py ── transports.py ── JSON lines ───── server.py ── computing.py ── synthesis
        └──────── exchange.py: voxels as .npy files in a private temporary folder ───┘

``jobs`` holds what the caller of :class:`~.client.WorkerClient` sees, ``protocol`` the messages, ``failures`` the kinds
of errors and ``processes`` how processes are started and killed. Of these, only ``computing`` imports torch.
"""
