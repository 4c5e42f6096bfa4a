"""The question, answered: which components take back what others wrote, because it was written."""
