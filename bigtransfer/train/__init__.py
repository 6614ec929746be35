"""How weights change: the loop, and the two recipes, pretrain and finetune."""
