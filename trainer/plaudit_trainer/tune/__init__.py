"""Instruction tuning, before the loop: demonstrations → a first version, with figures on rows never trained on.

data        JSON lines → examples, every bad line named
split       which of them are held out: whole instructions, never rows
text        examples → token ids, with the loss on the response only
train       TRL's SFTTrainer, or transformers' Seq2SeqTrainer for encoder–decoder models
evaluate    answers and perplexity on held-out rows
scores      accuracy, BLEU, chrF, perplexity with 95 % intervals
result      the folder that a tuning leaves, complete or not at all
register    its way to the server, as a version like any other
run         one tuning, readable from top to bottom
command     `plaudit tune`
"""
