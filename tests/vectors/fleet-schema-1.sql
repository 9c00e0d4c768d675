
CREATE TABLE assignment (
	kind VARCHAR NOT NULL, 
	target VARCHAR NOT NULL, 
	model VARCHAR NOT NULL, 
	release BIGINT NOT NULL, 
	not_after BIGINT, 
	made_at BIGINT NOT NULL, 
	PRIMARY KEY (kind, target, model)
)



CREATE TABLE device (
	name VARCHAR NOT NULL, 
	serial VARCHAR NOT NULL, 
	hardware VARCHAR NOT NULL, 
	group_name VARCHAR NOT NULL, 
	ctr BIGINT DEFAULT '0' NOT NULL, 
	tag BLOB NOT NULL, 
	revoked BOOLEAN DEFAULT 0 NOT NULL, 
	revoked_reason VARCHAR, 
	needs_qkd BOOLEAN DEFAULT 0 NOT NULL, 
	alarms INTEGER DEFAULT '0' NOT NULL, 
	enrolled_at BIGINT NOT NULL, 
	seen_at BIGINT, 
	report BLOB, 
	PRIMARY KEY (name)
)



CREATE TABLE metadata_file (
	role VARCHAR NOT NULL, 
	version BIGINT NOT NULL, 
	data BLOB NOT NULL, 
	PRIMARY KEY (role, version)
)



CREATE TABLE release (
	model VARCHAR NOT NULL, 
	release BIGINT NOT NULL, 
	path VARCHAR NOT NULL, 
	sha256 BLOB NOT NULL, 
	length BIGINT NOT NULL, 
	hardware VARCHAR NOT NULL, 
	floor BIGINT NOT NULL, 
	listed BOOLEAN NOT NULL, 
	ck BLOB, 
	PRIMARY KEY (model, release), 
	UNIQUE (path)
)



CREATE TABLE setting (
	name VARCHAR NOT NULL, 
	value VARCHAR NOT NULL, 
	PRIMARY KEY (name)
)



CREATE TABLE token (
	id VARCHAR NOT NULL, 
	scopes VARCHAR NOT NULL, 
	hash VARCHAR NOT NULL, 
	made_at BIGINT NOT NULL, 
	revoked BOOLEAN DEFAULT 0 NOT NULL, 
	PRIMARY KEY (id)
)



CREATE TABLE generation (
	kid BLOB NOT NULL, 
	device VARCHAR NOT NULL, 
	suite INTEGER NOT NULL, 
	public BLOB NOT NULL, 
	psk BLOB NOT NULL, 
	pending BOOLEAN NOT NULL, 
	PRIMARY KEY (kid), 
	FOREIGN KEY(device) REFERENCES device (name) ON DELETE CASCADE, 
	UNIQUE (public)
)


CREATE INDEX ix_device_group_name ON device (group_name)
CREATE INDEX ix_generation_device ON generation (device)