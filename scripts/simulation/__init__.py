"""One checkpoint to many nodes, on paper: egress, time and the hottest link."""
