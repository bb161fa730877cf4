"""Fine-tuning a pretrained model to tell labels of texts, by a new head."""
