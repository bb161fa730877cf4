"""Fine-tuning a pretrained causal language model on prompts and responses.

base.py        the checkpoint: found, cut, loaded, frozen but for what trains
records.py     files of records, and their division
prompts.py     records as prompts and responses, in the words of a template
encoding.py    those in tokens
batches.py     tokens in padded or packed rows
loss.py        the loss of responses, given their prompts
sight.py       that no place sees what it must not
responding.py  responses by greedy generation
answers.py     their final numbers, and the interval of a share
builtin.py     problems that need no download

Learning labels of texts, tasks/classify, begins from the same checkpoints.
"""
