"""Tests of nemo_gdpo.nemo."""
