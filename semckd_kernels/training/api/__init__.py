"""Training from Python, and what the command line does as well.

===========  ===========================================================================
``configs``  what somebody gives, by file and by name, as a whole configuration
``runs``     :func:`.runs.train` and :func:`.runs.load`
``start``    from a configuration to a run, checked on all processes alike
===========  ===========================================================================
"""
