// The API under load, for those who have k6: k6 run -e URL=https://host:7443 -e TOKEN=nva_... bench/k6/api.js
// Stages as in the requirements: 100, 1,000 and 10,000 users. script/bench api does the same with wrk.
import http from 'k6/http';
import { check } from 'k6';

export const options = {
  insecureSkipTLSVerify: true, // the platform's own CA; or give k6 its ca.crt
  stages: [
    { duration: '1m', target: 100 },
    { duration: '1m', target: 1000 },
    { duration: '1m', target: 10000 },
    { duration: '30s', target: 0 },
  ],
  thresholds: {
    http_req_failed: ['rate<0.0001'],
    http_req_duration: ['p(95)<1000'],
  },
};

const params = { headers: { Authorization: `Bearer ${__ENV.TOKEN}`, 'Accept-Encoding': 'gzip' } };

export function setup() {
  const listed = http.get(`${__ENV.URL}/api/v1/vms?limit=100&fields=id`, params);
  return listed.json().items.map((vm) => vm.id);
}

export default function (ids) {
  let answer;
  if (Math.random() < 0.05 && ids.length) {
    const id = ids[Math.floor(Math.random() * ids.length)];
    answer = http.patch(`${__ENV.URL}/api/v1/vms/${id}`, JSON.stringify({ start_order: Math.floor(Math.random() * 1000) }),
      { headers: { ...params.headers, 'Content-Type': 'application/json' } });
  } else {
    answer = http.get(`${__ENV.URL}/api/v1/vms?limit=20`, params);
  }
  check(answer, { 'it was answered': (r) => r.status === 200 });
}
